"""Runs and their attempts: registration, state, lineage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from pydantic import AwareDatetime, ConfigDict, Field, JsonValue

from stabilizer.protocol.batches import NamesAttempt, SamplingPlan, Step
from stabilizer.protocol.commands import AttemptId
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.message import Message
from stabilizer.protocol.series import Catalog

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]

Key = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]*$")]


class RunState(StrEnum):
    """State of a run; `lost` means that its heartbeats have stopped."""

    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    LOST = "lost"


class ResumedFrom(Message):
    """The run and attempt stored in the checkpoint that a job resumes from."""

    run_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    """Id of the run that wrote the checkpoint; null if the job had not reached the collector."""
    attempt_id: AttemptId
    """Id of the attempt that wrote the checkpoint."""


class SchedulerJob(Message):
    """How the scheduler names a job; the same id with a higher restart count is a restart."""

    id: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
    """Name of the scheduler and its id of the job."""
    restarts: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """How often the scheduler has restarted it."""


class RewindKind(StrEnum):
    """What a rollback gives back of a job."""

    EXACT = "exact"
    """Weights, optimizer, random states and data; the repeated steps are the same to the bit."""
    NONE = "none"
    """Nothing: a rollback is rejected."""


class RunRegister(Message):
    """Registration of a process of a job.

    A restart resumes its run: by an explicit `key`, by the checkpoint that it `resumes`, by
    the scheduler's id, or by the name alone where no job of that name is live. Two live jobs of
    one name and no key never share a run. Without `attempt_id` (version 1) it resumes the
    run of its name and key.
    """

    model_config = ConfigDict(ser_json_inf_nan="null")  # in `config`, as always

    protocol_version: int
    """Protocol version of the job."""
    name: Name
    """Name of the training job."""
    key: Key = ""
    """Distinguishes runs of the same name, for example the job id of the scheduler."""
    mode: Mode | None = None
    """How far the policy may go by itself; null takes the mode of the rule file."""
    policy: str | None = Field(default=None, max_length=200_000)
    """A rule file (YAML) for this run; null takes that of the collector."""
    config: dict[str, JsonValue] = Field(default_factory=dict)
    """Configuration of the job, for display."""
    world_size: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1
    """Number of ranks."""
    global_batch: Annotated[int, Field(ge=1, le=2**53)] | None = None
    """Samples of one optimizer step over all ranks and microbatches; null if unknown."""
    catalogs: tuple[Catalog, ...] = ()
    """The series that the job measures together."""
    git_revision: Annotated[str, Field(max_length=80)] | None = None
    """Git revision of the training code."""
    rewind: RewindKind | None = None
    """What a rollback gives back; null from a job that does not say."""
    rewind_reason: Annotated[str, Field(max_length=1000)] = ""
    """Why the job cannot be rewound; empty if it can."""
    start_step: Step = 0
    """Completed optimizer steps at which the attempt starts."""
    heartbeat_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """The job promises a heartbeat at least this often."""
    attempt_id: AttemptId | None = None
    """Id of the attempt that begins; registering it again changes nothing. Version 2."""
    resumes: ResumedFrom | None = None
    """From the checkpoint that the job resumes from."""
    scheduler: SchedulerJob | None = None
    """From the scheduler's environment."""


class RunRegistered(Message):
    """Answer to a registration."""

    run_id: str
    """Id of the run."""
    attempt: int
    """Number of the attempt that starts now."""
    plan: SamplingPlan
    """How often to measure."""
    mode: Mode
    """How far the policy may go by itself."""
    protocol_version: int
    """Protocol version in use: that of the job."""
    notice: str = ""
    """For the job's log: why it became a run of its own."""


class CatalogsAdd(Message):
    """Catalogs found after the registration."""

    catalogs: Annotated[tuple[Catalog, ...], Field(min_length=1, max_length=100)]
    """The catalogs to add."""


class RunUpdate(Message):
    """A change to a run by a user."""

    mode: Mode
    """How far the policy may go by itself."""
    reason: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"\S")]
    """Why, for the audit log."""


class Heartbeat(NamesAttempt):
    """A heartbeat without frames, or a change of state."""

    step: Step
    """Completed optimizer steps."""
    state: RunState = RunState.RUNNING
    """State of the job."""
    message: Annotated[str, Field(max_length=2000)] = ""
    """Explanation of the state, for example of a failure."""


class Attempt(Message):
    """A stretch of a run between two starts or rollbacks."""

    number: int
    """Number of the attempt within the run, from 1."""
    from_step: int
    """Completed optimizer steps at which it started."""
    last_step: int
    """Newest step that was reported in it."""
    parent: int | None
    """The attempt that it continues; null if unknown."""
    reason: str
    """Why it started."""
    command_id: str | None
    """The command that caused it; null if none did."""
    skipped_samples: int
    """Samples of the stream left out between parent and attempt."""
    started_at: AwareDatetime
    """When it was registered."""
    late: bool = False
    """It arrived after a later process had registered, and was never the newest."""


class Phase(StrEnum):
    """What the loss of a run does, by its own pace and noise."""

    LEARNING = "learning"
    """Too little is known."""
    FALLING = "falling"
    HONEYMOON = "honeymoon"
    """It falls ten times slower than on average so far, or no more."""
    DIVERGING = "diverging"
    """It has left its level upwards and is not on its way back."""


class Run(Message):
    """A training job through all restarts and rollbacks."""

    id: str
    """Id of the run."""
    name: str
    """Name of the training job."""
    key: str
    """Distinguishes runs of the same name; empty if the job gave none."""
    state: RunState
    """State of the run."""
    mode: Mode
    """How far the policy may go by itself."""
    attempt: int
    """Number of the newest attempt."""
    step: int
    """Newest step of the newest attempt."""
    world_size: int
    """Number of ranks."""
    global_batch: int | None
    """Samples of one optimizer step; null if the job did not report it."""
    git_revision: str | None
    """Revision of the training code; null if unknown."""
    rules_hash: str
    """Hash of the rule file of the run."""
    config: dict[str, JsonValue]
    """Configuration that the job reported."""
    created_at: AwareDatetime
    """When it was first registered."""
    last_seen_at: AwareDatetime
    """When the job last reported."""
    open_incident_id: str | None
    """The incident that is not resolved; null if there is none."""
    attempts: tuple[Attempt, ...] = ()
    """All attempts by number; empty in lists."""
    phase: Phase = Phase.LEARNING
    """What its loss does."""
    rewind: RewindKind | None = None
    """What a rollback gives back, as the job says; null if it does not."""
    rewind_reason: str = ""
    """Why the job cannot be rewound; empty if it can."""


@dataclass(frozen=True, slots=True)
class Tick:
    """What a clock shows of a run at a step, in seconds; None for what is not known now."""

    step: int
    silent: float | None = None
    """Since the last report of the job."""
    stalled: float | None = None
    """Since the last step of a job that reports; 0 for one that is paused."""
    behind: float | None = None
    """Age of the newest frame when it arrived."""


_NOTHING: Final = -1


@dataclass(frozen=True, slots=True)
class Branch:
    """An attempt with the end of its live part.

    A step is live if it is on the path to the newest attempt, abandoned if a rollback left it.
    """

    attempt: int
    from_step: int
    live_to: int | None
    """Last live step; None for the newest attempt, which has no end yet. Below `from_step` if no
    step of the attempt is live."""

    def is_live(self, step: int) -> bool:
        """Return whether a step of this attempt is live."""
        return self.live_to is None or step <= self.live_to


def trace_lineage(attempts: Sequence[Attempt]) -> tuple[Branch, ...]:
    """Follow the newest attempt back to the first, from parent to parent.

    An attempt without a known parent continues from the attempt of the next lower number: a job
    that was restarted without a checkpoint of ours does not know its predecessor.

    Args:
        attempts: Of one run, in any order.

    Returns:
        One branch for each attempt, numbers ascending. Live parts of successive attempts do not
        overlap, except at the step at which the later one starts.
    """
    by_number = {attempt.number: attempt for attempt in attempts}
    numbers = sorted(by_number)
    ends: dict[int, int | None] = {}
    end: int | None = None
    in_time = [number for number in numbers if not by_number[number].late]
    at = in_time[-1] if in_time else None
    while at is not None and at not in ends:
        attempt = by_number[at]
        ends[at] = end
        end = attempt.from_step if end is None else min(end, attempt.from_step)
        parent = by_number.get(attempt.parent or 0)
        if parent is not None and (parent.number < at or parent.late):
            at = parent.number
        else:
            at = _before(at, in_time)
    return tuple(
        Branch(number, by_number[number].from_step, ends.get(number, _NOTHING))
        for number in numbers
    )


def _before(number: int, numbers: Sequence[int]) -> int | None:
    return max((other for other in numbers if other < number), default=None)

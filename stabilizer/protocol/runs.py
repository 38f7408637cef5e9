"""Runs: registration, state, lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field, JsonValue

from stabilizer.protocol.batches import AttemptNumber, SamplingPlan, Step
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.message import Message
from stabilizer.protocol.series import Catalog

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]

Key = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]*$")]


class RunState(StrEnum):
    """State of a run; `lost` is the collector's word for no sign of life."""

    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    LOST = "lost"


class RunRegister(Message):
    """A job's first word. The same name and key come back to the same run."""

    model_config = ConfigDict(ser_json_inf_nan="null")  # in `config`, as always

    protocol_version: int
    name: Name
    key: Key = ""
    """Tells runs of the same name apart, for example a scheduler's job id."""
    mode: Mode | None = None
    """None leaves it to the policy, which ships with `propose`."""
    policy: str | None = Field(default=None, max_length=200_000)
    """A rule file (YAML) for this run; None takes the collector's."""
    config: dict[str, JsonValue] = Field(default_factory=dict)
    world_size: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1
    global_batch: Annotated[int, Field(ge=1, le=2**53)] | None = None
    """Samples of one optimizer step over all ranks and microbatches."""
    catalogs: tuple[Catalog, ...] = ()
    git_revision: Annotated[str, Field(max_length=80)] | None = None
    start_step: Step = 0
    heartbeat_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """The job promises a sign of life at least this often."""


class RunRegistered(Message):
    """The collector's answer to a registration."""

    run_id: str
    attempt: int
    """The number of the attempt that begins now."""
    plan: SamplingPlan
    mode: Mode
    protocol_version: int


class CatalogsAdd(Message):
    """More series, found after the registration."""

    catalogs: Annotated[tuple[Catalog, ...], Field(min_length=1, max_length=100)]


class RunUpdate(Message):
    """A person's change to a run."""

    mode: Mode
    reason: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"\S")]


class Heartbeat(Message):
    """A sign of life without frames, or a change of state."""

    attempt: AttemptNumber
    step: Step
    state: RunState = RunState.RUNNING
    message: Annotated[str, Field(max_length=2000)] = ""


class Attempt(Message):
    """A stretch of a run between two starts or rollbacks."""

    number: int
    from_step: int
    last_step: int
    parent: int | None
    reason: str
    command_id: str | None
    skipped_samples: int
    started_at: datetime


class Run(Message):
    """A training job through all restarts and rollbacks."""

    id: str
    name: str
    key: str
    state: RunState
    mode: Mode
    attempt: int
    step: int
    world_size: int
    global_batch: int | None
    git_revision: str | None
    rules_hash: str
    config: dict[str, JsonValue]
    created_at: datetime
    last_seen_at: datetime
    open_incident_id: str | None
    attempts: tuple[Attempt, ...] = ()


_NOTHING: Final = -1


@dataclass(frozen=True, slots=True)
class Branch:
    """An attempt with the end of its live part."""

    attempt: int
    from_step: int
    live_to: int | None
    """Last step that is live; None: all of it, the attempt is under way. Below `from_step` where
    nothing of its own is live."""

    def is_live(self, step: int) -> bool:
        """Whether a sample of this attempt at this step lies on the way to the newest attempt."""
        return self.live_to is None or step <= self.live_to


def trace_lineage(attempts: Sequence[Attempt]) -> tuple[Branch, ...]:
    """Follow the newest attempt back to the first, from parent to parent.

    An attempt without a known parent before it goes on from the attempt of the next lower number:
    a job that was started anew does not know how its predecessor was counted.

    Args:
        attempts: Of one run, in any order.

    Returns:
        One branch for each attempt, numbers ascending. Live parts of successive attempts do not
        overlap, except for a sample that an attempt has at the very step it begins at.
    """
    by_number = {attempt.number: attempt for attempt in attempts}
    numbers = sorted(by_number)
    ends: dict[int, int | None] = {}
    end: int | None = None
    at = numbers[-1] if numbers else None
    while at is not None:
        attempt = by_number[at]
        ends[at] = end
        end = attempt.from_step if end is None else min(end, attempt.from_step)
        at = _parent(attempt, numbers)
    return tuple(
        Branch(number, by_number[number].from_step, ends.get(number, _NOTHING))
        for number in numbers
    )


def _parent(attempt: Attempt, numbers: Sequence[int]) -> int | None:
    before = [number for number in numbers if number < attempt.number]
    if attempt.parent in before:
        return attempt.parent
    return before[-1] if before else None

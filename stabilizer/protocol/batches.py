"""Batches: what a job sends along with its frames, and the answer of the collector."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, JsonValue, model_validator

from stabilizer.protocol.commands import AttemptId, Command
from stabilizer.protocol.message import Message

Step = Annotated[int, Field(ge=0, le=2**53)]
AttemptNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""As large as a database column allows."""


class NamesAttempt(Message):
    """Base of messages of one attempt. A job of protocol version 2 names it by id."""

    attempt: AttemptNumber | None = None
    """Number, counted by a job of protocol version 1; null where `attempt_id` is given."""
    attempt_id: AttemptId | None = None
    """Id minted by the job; the collector numbers attempts as they arrive."""

    @model_validator(mode="after")
    def _check_named(self) -> Self:
        if self.attempt is None and self.attempt_id is None:
            raise ValueError("attempt_id or attempt is required")
        return self


class SamplingPlan(Message):
    """How often the job measures the statistics of its modules.

    Loss, z_loss, the global gradient norm, lr and step_seconds are measured at every step.
    """

    every: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Steps between two measurements of the modules."""
    burst_until_step: Annotated[int, Field(ge=0)] | None = None
    """Measure the modules at every step up to this one; None for no burst."""

    def is_sampled(self, step: int) -> bool:
        """Return whether the modules are measured at this step (completed optimizer steps)."""
        in_burst = self.burst_until_step is not None and step <= self.burst_until_step
        return in_burst or step % self.every == 0


class SnapshotInfo(Message):
    """A snapshot that the job holds now."""

    id: Annotated[str, Field(max_length=64)]
    """Id of the snapshot, unique within the run."""
    attempt: AttemptNumber
    """Number of the attempt it was taken in; the collector sets it where `attempt_id` is given."""
    attempt_id: AttemptId | None = None
    """Id of the attempt it was taken in."""
    step: Step
    """Completed optimizer steps when it was taken."""
    finite: bool
    """Whether all its tensors are finite: the part of `healthy` that the agent checks."""
    samples: Count = 0
    """Position in the data: samples of the stream consumed before it."""
    num_bytes: Count = 0
    """Size in memory, in bytes."""


class MarkerKind(StrEnum):
    """Events that affect the rules."""

    RESUME = "resume"
    ROLLBACK = "rollback"
    LR_CHANGE = "lr_change"
    PHASE_CHANGE = "phase_change"


class Marker(Message):
    """An event of the job at a step."""

    kind: MarkerKind
    """What happened."""
    step: Step
    """Completed optimizer steps when it happened."""
    text: Annotated[str, Field(max_length=500)] = ""
    """Detail, for example the name of a phase."""


class AttemptStart(Message):
    """Where an attempt begins.

    A job that mints ids sends it with every batch, so that batches may arrive in any order of
    attempts. A job of protocol version 1 sends it with the first batch of every later attempt.
    """

    from_step: Step
    """Completed optimizer steps at which the attempt starts."""
    parent: AttemptNumber | None = None
    """Number of the attempt it continues from, in protocol version 1."""
    parent_id: AttemptId | None = None
    """Id of the attempt it continues from."""
    origin_id: AttemptId | None = None
    """Id of the first attempt of the same process: the one with which it registered."""
    reason: MarkerKind = MarkerKind.RESUME
    """Why the attempt started."""
    command_id: str | None = None
    """The command that caused it; null if none did."""
    skipped_samples: Count = 0
    """Samples of the stream left out between parent and attempt."""


class BlockHeader(Message):
    """Shape of one block of frames in a binary body."""

    catalog: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Id of the catalog that names the columns."""
    num_frames: Annotated[int, Field(ge=0, le=100_000)]
    """Rows: one frame per measured step."""
    num_series: Annotated[int, Field(ge=1, le=100_000)]
    """Columns: the length of the catalog."""
    sparse: bool = False
    """The block has presence bits; otherwise every value was measured."""


class AgentHealth(Message):
    """Losses and failures since the job started."""

    frames_dropped: Count = 0
    """Frames lost because buffer and spool were full."""
    send_failures: Count = 0
    """Requests that failed."""
    frames_spooled: Count = 0
    """Frames written to the spool on disk."""


class BatchHeader(NamesAttempt):
    """Header of a binary batch. A batch with the same attempt and sequence is a duplicate."""

    sequence: Count
    """Number of the batch within its attempt, from 0."""
    attempt_start: AttemptStart | None = None
    """How the attempt started; only in its first batch."""
    markers: tuple[Marker, ...] = ()
    """Events since the last batch."""
    snapshots: tuple[SnapshotInfo, ...] | None = None
    """All snapshots that the job holds; null if unchanged since the last batch."""
    health: AgentHealth | None = None
    """Loss and failure counts of the agent; null if unchanged."""
    blocks: tuple[BlockHeader, ...] = ()
    """Shapes of the blocks that follow, in order."""


class JsonFrame(Message):
    """A frame as JSON. NaN and infinite values are the strings "nan", "inf" and "-inf"."""

    step: Step
    """Completed optimizer steps."""
    time: datetime | None = None
    """When it was measured; null takes the time of arrival."""
    values: Annotated[dict[str, float], Field(min_length=1, max_length=10_000)]
    """Value by series in text form."""


class JsonBatch(NamesAttempt):
    """A batch as JSON. The collector builds catalogs from the names of the series."""

    sequence: Count
    """Number of the batch within its attempt, from 0."""
    attempt_start: AttemptStart | None = None
    """How the attempt started; only in its first batch."""
    markers: tuple[Marker, ...] = ()
    """Events since the last batch."""
    snapshots: tuple[SnapshotInfo, ...] | None = None
    """All snapshots that the job holds; null if unchanged since the last batch."""
    frames: tuple[JsonFrame, ...] = ()
    """The measured values, oldest first."""


class BatchAnswer(Message):
    """Answer to frames, heartbeats and long polls: commands, sampling, healthy snapshots."""

    attempt: int
    """Number of the attempt; 0 for one that the collector does not know."""
    attempt_id: AttemptId | None = None
    """Id of the attempt."""
    accepted_sequence: int
    """Highest sequence that is stored for the attempt; -1 for none."""
    duplicate: bool = False
    """Whether the batch was stored before; it is not stored twice."""
    commands: tuple[Command, ...] = ()
    """Commands of the run that are not settled, oldest first."""
    plan: SamplingPlan = SamplingPlan()
    """How often to measure from now on."""
    healthy_snapshots: tuple[str, ...] = ()
    """Ids of the healthy snapshots; the job must keep the newest of them."""
    notice: str = ""
    """For the job's log: another live job has registered under the same name."""
    server: dict[str, JsonValue] = Field(default_factory=dict)
    """Further facts about the collector, for display only."""

"""What travels with frames, and what the collector answers."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, JsonValue

from stabilizer.protocol.commands import Command
from stabilizer.protocol.message import Message

Step = Annotated[int, Field(ge=0, le=2**53)]
AttemptNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""As much as a database column holds."""


class SamplingPlan(Message):
    """Every how many steps the module statistics are measured.

    Loss, z_loss, the global gradient norm, lr and step_seconds are measured at every step.
    """

    every: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Steps between two measurements of the modules."""
    burst_until_step: Annotated[int, Field(ge=0)] | None = None
    """Measure the modules at every step up to this one; None for no burst."""

    def is_sampled(self, step: int) -> bool:
        """Tell whether the modules are measured at this step (completed optimizer steps)."""
        in_burst = self.burst_until_step is not None and step <= self.burst_until_step
        return in_burst or step % self.every == 0


class SnapshotInfo(Message):
    """A snapshot that the job holds now.

    `samples` is the position in the data: samples of the stream consumed before this snapshot.
    """

    id: Annotated[str, Field(max_length=64)]
    attempt: AttemptNumber
    step: Step
    finite: bool
    """All tensors are finite: the agent's half of `healthy`."""
    samples: Count = 0
    num_bytes: Count = 0


class MarkerKind(StrEnum):
    """Events that rules must know."""

    RESUME = "resume"
    ROLLBACK = "rollback"
    LR_CHANGE = "lr_change"
    PHASE_CHANGE = "phase_change"


class Marker(Message):
    """An event of the job at a step."""

    kind: MarkerKind
    step: Step
    text: Annotated[str, Field(max_length=500)] = ""


class AttemptStart(Message):
    """Where an attempt begins; sent with the first batch of every attempt after the first."""

    from_step: Step
    parent: AttemptNumber | None = None
    reason: MarkerKind = MarkerKind.RESUME
    command_id: str | None = None
    skipped_samples: Count = 0


class BlockHeader(Message):
    """Shape of one block of frames in the body."""

    catalog: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    num_frames: Annotated[int, Field(ge=0, le=100_000)]
    num_series: Annotated[int, Field(ge=1, le=100_000)]
    sparse: bool = False


class AgentHealth(Message):
    """Counts since the job began, so that what was lost is known."""

    frames_dropped: Count = 0
    send_failures: Count = 0
    frames_spooled: Count = 0


class BatchHeader(Message):
    """The head of a batch. (attempt, sequence) names it: the same pair again is the same batch."""

    attempt: AttemptNumber
    sequence: Count
    """Counts batches within an attempt, from 0."""
    attempt_start: AttemptStart | None = None
    markers: tuple[Marker, ...] = ()
    snapshots: tuple[SnapshotInfo, ...] | None = None
    """The whole inventory; None if unchanged since the last batch."""
    health: AgentHealth | None = None
    blocks: tuple[BlockHeader, ...] = ()


class JsonFrame(Message):
    """A frame for people and other languages: series in text form to value.

    Values are numbers, or "nan", "inf", "-inf", which JSON has no numbers for.
    """

    step: Step
    time: datetime | None = None
    values: Annotated[dict[str, float], Field(min_length=1, max_length=10_000)]


class JsonBatch(Message):
    """The JSON form of a batch; catalogs are made from the names as they come."""

    attempt: AttemptNumber
    sequence: Count
    attempt_start: AttemptStart | None = None
    markers: tuple[Marker, ...] = ()
    snapshots: tuple[SnapshotInfo, ...] | None = None
    frames: tuple[JsonFrame, ...] = ()


class BatchAnswer(Message):
    """What the job must know: answer to frames, heartbeats and long polls alike."""

    attempt: int
    accepted_sequence: int
    """Highest sequence stored for this attempt; -1 for none."""
    duplicate: bool = False
    """The batch had been stored before; nothing was stored twice."""
    commands: tuple[Command, ...] = ()
    """Every command of the run that is not settled, oldest first."""
    plan: SamplingPlan = SamplingPlan()
    healthy_snapshots: tuple[str, ...] = ()
    """Ids that the collector holds to be healthy; the newest of them must not be dropped."""
    server: dict[str, JsonValue] = Field(default_factory=dict)

"""Commands to a running job, and their results."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

from pydantic import AwareDatetime, Field

from stabilizer.protocol.message import Message

Factor = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Steps = Annotated[int, Field(ge=0, le=10_000_000)]
AttemptId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""Minted by the job: 32 hexadecimal digits."""


class CommandKind(StrEnum):
    """What a command makes a job do."""

    ROLLBACK = "rollback"
    REDUCE_LR = "reduce_lr"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    CHECKPOINT_NOW = "checkpoint_now"


class CommandState(StrEnum):
    """State of a command; the last five are final."""

    PROPOSED = "proposed"
    PENDING = "pending"
    DELIVERED = "delivered"
    APPLIED = "applied"
    REJECTED = "rejected"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


SETTLED_STATES = frozenset(
    {
        CommandState.APPLIED,
        CommandState.REJECTED,
        CommandState.FAILED,
        CommandState.EXPIRED,
        CommandState.CANCELLED,
    }
)


class RejectReason(StrEnum):
    """Why a command was not applied."""

    PAST_ATTEMPT = "past_attempt"
    UNKNOWN_SNAPSHOT = "unknown_snapshot"
    SNAPSHOT_NOT_FINITE = "snapshot_not_finite"
    EXPIRED = "expired"
    UNSUPPORTED = "unsupported"
    NOT_PAUSED = "not_paused"
    RUN_ENDING = "run_ending"
    RESTORE_FAILED = "restore_failed"
    READ_BACK_MISMATCH = "read_back_mismatch"
    STALE_FENCE = "stale_fence"
    REFUSED_BY_PERSON = "refused_by_person"
    SUPERSEDED = "superseded"
    OTHER_RUN = "other_run"
    BEYOND_LIMITS = "beyond_limits"


class SnapshotTarget(Message):
    """The snapshot to restore, identified unambiguously."""

    snapshot_id: str
    """Id of the snapshot."""
    attempt: Annotated[int, Field(ge=1, le=2**31 - 1)]
    """Number of the attempt in which it was taken."""
    attempt_id: AttemptId | None = None
    """Id of that attempt; set on delivery to a job."""
    step: Steps
    """Completed optimizer steps when it was taken."""


class ReduceLrParameters(Message):
    """Multiply the learning rate of every parameter group, in addition to the scheduler."""

    kind: Literal[CommandKind.REDUCE_LR] = CommandKind.REDUCE_LR
    """Always `reduce_lr`."""
    factor: Factor
    """Multiplies the current lr_scale."""
    hold_steps: Steps | None = None
    """Steps at the reduced rate; null keeps it until another command changes it."""
    ramp_steps: Steps = 0
    """Steps of the linear ramp back to the lr_scale before, after `hold_steps`."""


class RollbackParameters(Message):
    """Restore a snapshot, skip data, and reduce the learning rate if requested."""

    kind: Literal[CommandKind.ROLLBACK] = CommandKind.ROLLBACK
    """Always `rollback`."""
    target: SnapshotTarget
    """The snapshot to restore."""
    skip_steps: Steps = 0
    """Steps' worth of data to leave out, in samples from the restored position onwards."""
    reduce_lr: ReduceLrParameters | None = None
    """Reduction of the learning rate after the restore; null for none."""


class PauseParameters(Message):
    """Pause at a step boundary until `resume` or `stop`."""

    kind: Literal[CommandKind.PAUSE] = CommandKind.PAUSE
    """Always `pause`."""


class ResumeParameters(Message):
    """Resume after a pause."""

    kind: Literal[CommandKind.RESUME] = CommandKind.RESUME
    """Always `resume`."""


class StopParameters(Message):
    """End the training in order at a step boundary."""

    kind: Literal[CommandKind.STOP] = CommandKind.STOP
    """Always `stop`."""


class CheckpointNowParameters(Message):
    """Write a durable checkpoint at a step boundary."""

    kind: Literal[CommandKind.CHECKPOINT_NOW] = CommandKind.CHECKPOINT_NOW
    """Always `checkpoint_now`."""


CommandParameters: TypeAlias = Annotated[
    RollbackParameters
    | ReduceLrParameters
    | PauseParameters
    | ResumeParameters
    | StopParameters
    | CheckpointNowParameters,
    Field(discriminator="kind"),
]


class ReadBack(Message):
    """State of the job, read back after it applied a command."""

    attempt: int
    """The attempt that the job is in."""
    attempt_id: AttemptId | None = None
    """The attempt as the job names it; the collector sets `attempt` by it."""
    step: int
    """Completed optimizer steps after the command."""
    lr: dict[str, float] = Field(default_factory=dict)
    """Effective learning rate by parameter group."""
    lr_scale: float = 1.0
    """The multiplier on the scheduler; 1 if nothing is overridden."""
    samples: int = 0
    """Position in the data, in samples of the stream."""
    skipped_samples: int = 0
    """Samples of the stream that were left out."""
    checkpoint_path: str | None = None
    """Where a checkpoint was written; null if none was."""


class CommandResult(Message):
    """The result of a command, reported by the job. Reporting it twice changes nothing."""

    command_id: str
    """The command that it is about."""
    state: Literal[
        CommandState.APPLIED, CommandState.REJECTED, CommandState.FAILED, CommandState.EXPIRED
    ]
    """The final state."""
    reason: RejectReason | None = None
    """Why the command was not applied; null if it was."""
    message: Annotated[str, Field(max_length=2000)] = ""
    """Explanation for the reader."""
    applied_step: Annotated[int, Field(ge=0, le=2**53)] | None = None
    """The step boundary at which it was applied, before any rewind; null if it was not."""
    read_back: ReadBack | None = None
    """The state of the job after the command; null if nothing was applied."""


class Command(Message):
    """An instruction to a job."""

    id: Annotated[str, Field(min_length=1, max_length=100)]
    """Id of the command."""
    run_id: str
    """The run that it is for."""
    attempt: int
    """The attempt that it was issued for; later attempts reject it."""
    attempt_id: AttemptId | None = None
    """Id of that attempt; set on delivery to a job."""
    parameters: CommandParameters
    """What the job has to do."""
    state: CommandState
    """Its state."""
    reason: str
    """A `DecisionReason` or `RejectReason` value."""
    message: str = ""
    """Explanation for the reader."""
    incident_id: str | None = None
    """The incident that caused it; null for a command by hand."""
    actor: str = "policy"
    """`policy`, or `person:<name>`."""
    fence: int = 0
    """Fencing number of the collector that issued it; the job refuses lower ones."""
    issued_step: int | None = None
    """Step of the run when it was issued; null if unknown."""
    issued_at: AwareDatetime
    """When it was issued."""
    expires_at: AwareDatetime
    """When it expires if no job has taken it."""
    delivered_at: AwareDatetime | None = None
    """When it was first delivered; null if it was not."""
    settled_at: AwareDatetime | None = None
    """When it reached a final state; null if it has not."""
    result: CommandResult | None = None
    """The result reported by the job; null if there is none."""

    @property
    def kind(self) -> CommandKind:
        """What the job has to do."""
        return self.parameters.kind

    @property
    def is_settled(self) -> bool:
        """Whether it is in a final state."""
        return self.state in SETTLED_STATES

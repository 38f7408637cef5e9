"""Commands to a running job and what comes back."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from stabilizer.protocol.message import Message

Factor = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Steps = Annotated[int, Field(ge=0, le=10_000_000)]


class CommandKind(StrEnum):
    """What a job can be told to do."""

    ROLLBACK = "rollback"
    REDUCE_LR = "reduce_lr"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    CHECKPOINT_NOW = "checkpoint_now"


class CommandState(StrEnum):
    """Life of a command; the last five are final."""

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
    """Why a job or a person did not carry a command out."""

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


class SnapshotTarget(Message):
    """The snapshot to go back to, named in full so that no other can be taken for it."""

    snapshot_id: str
    attempt: Annotated[int, Field(ge=1, le=2**31 - 1)]
    step: Steps


class ReduceLrParameters(Message):
    """Multiply the learning rate of every group, on top of whatever the scheduler says."""

    kind: Literal[CommandKind.REDUCE_LR] = CommandKind.REDUCE_LR
    factor: Factor
    """Multiplies the present lr_scale."""
    hold_steps: Steps | None = None
    """Steps at the reduced rate; None holds it until told otherwise."""
    ramp_steps: Steps = 0
    """Steps of the linear way back to where lr_scale was, after `hold_steps`."""


class RollbackParameters(Message):
    """Rewind to a snapshot, go on behind the skipped data, and cut the rate if asked for."""

    kind: Literal[CommandKind.ROLLBACK] = CommandKind.ROLLBACK
    target: SnapshotTarget
    skip_steps: Steps = 0
    """Steps' worth of data left out, counted in samples from the restored position onwards."""
    reduce_lr: ReduceLrParameters | None = None


class PauseParameters(Message):
    """Stand still at a step boundary until `resume` or `stop`."""

    kind: Literal[CommandKind.PAUSE] = CommandKind.PAUSE


class ResumeParameters(Message):
    """Go on after a pause."""

    kind: Literal[CommandKind.RESUME] = CommandKind.RESUME


class StopParameters(Message):
    """End the training orderly at a step boundary."""

    kind: Literal[CommandKind.STOP] = CommandKind.STOP


class CheckpointNowParameters(Message):
    """Write a durable checkpoint at a step boundary."""

    kind: Literal[CommandKind.CHECKPOINT_NOW] = CommandKind.CHECKPOINT_NOW


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
    """What the job read from itself after it had carried a command out."""

    attempt: int
    step: int
    """Completed optimizer steps where it now stands."""
    lr: dict[str, float] = Field(default_factory=dict)
    """Effective learning rate by parameter group."""
    lr_scale: float = 1.0
    samples: int = 0
    """Position in the data, in samples of the stream."""
    skipped_samples: int = 0
    checkpoint_path: str | None = None


class CommandResult(Message):
    """A job's word on a command. Sending it twice changes nothing."""

    command_id: str
    state: Literal[
        CommandState.APPLIED, CommandState.REJECTED, CommandState.FAILED, CommandState.EXPIRED
    ]
    reason: RejectReason | None = None
    message: Annotated[str, Field(max_length=2000)] = ""
    applied_step: Annotated[int, Field(ge=0, le=2**53)] | None = None
    """The step boundary at which it was carried out, before any rewinding."""
    read_back: ReadBack | None = None


class Command(Message):
    """An instruction to a job, as it is stored, shown and delivered."""

    id: str
    run_id: str
    attempt: int
    """The attempt it was decided for; any later attempt refuses it."""
    parameters: CommandParameters
    state: CommandState
    reason: str
    """A `DecisionReason` or `RejectReason` value."""
    message: str = ""
    incident_id: str | None = None
    actor: str = "policy"
    """`policy`, or `person:<name>`."""
    fence: int = 0
    issued_step: int | None = None
    issued_at: datetime
    expires_at: datetime
    delivered_at: datetime | None = None
    settled_at: datetime | None = None
    result: CommandResult | None = None

    @property
    def kind(self) -> CommandKind:
        """What is to be done."""
        return self.parameters.kind

    @property
    def is_settled(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state in SETTLED_STATES

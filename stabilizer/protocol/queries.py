"""What people and pages ask the collector, and what it shows them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, JsonValue, model_validator

from stabilizer.protocol.batches import AttemptNumber, Step
from stabilizer.protocol.commands import (
    CheckpointNowParameters,
    CommandKind,
    PauseParameters,
    ReduceLrParameters,
    RejectReason,
    ResumeParameters,
    Steps,
    StopParameters,
)
from stabilizer.protocol.decisions import DecisionReason, Mode
from stabilizer.protocol.message import Message
from stabilizer.protocol.runs import Run, RunState

ReasonText = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"\S")]
RuleName = Annotated[str, Field(min_length=1, max_length=200)]
Cursor = Annotated[str, Field(max_length=500)]


class RunSort(StrEnum):
    """By what a list of runs is ordered."""

    CREATED_AT = "created_at"
    LAST_SEEN_AT = "last_seen_at"
    NAME = "name"
    STEP = "step"


class RunQuery(Message):
    """Which runs to list, and in what order."""

    states: tuple[RunState, ...] = ()
    """Empty takes every state."""
    name: Annotated[str, Field(max_length=200)] = ""
    """Part of the name or the key, or the beginning of the id, upper and lower case alike.

    Empty takes every run.
    """
    sort: RunSort = RunSort.CREATED_AT
    descending: bool = True
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    cursor: Cursor | None = None
    """`next_cursor` of the page before; only with the same sort and order."""


class RunPage(Message):
    """A page of runs, without their attempts."""

    runs: tuple[Run, ...]
    total: int
    """Runs that the query takes, on all pages."""
    next_cursor: str | None = None
    """None on the last page."""


class SeriesInfo(Message):
    """A series that a run has."""

    series: str
    """Text form, as `SeriesKey` writes it."""
    metric: str
    labels: dict[str, str]
    catalog: str


class SeriesQuery(Message):
    """Which samples to read. Both ends of the range belong to it."""

    series: Annotated[tuple[str, ...], Field(min_length=1, max_length=500)]
    """Text forms."""
    attempt: AttemptNumber | None = None
    """None reads every attempt, each on its own."""
    from_step: Step = 0
    to_step: Step | None = None
    max_points: Annotated[int, Field(ge=4, le=100_000)] | None = None
    """About how many samples to show of each series and attempt; None shows all.

    Fewer are shown by buckets that keep their first minimum, first maximum, last and first
    non-finite sample, so that no spike is lost.
    """


class SeriesData(Message):
    """Samples of one series in one attempt, steps ascending. NaN and Inf are data."""

    series: str
    attempt: int
    steps: tuple[int, ...]
    times: tuple[float, ...]
    """Seconds since the epoch, by the job's clock."""
    values: tuple[float, ...]
    num_samples: int
    """Samples in the range, before any were left out."""
    num_nonfinite: int
    """How many of these are NaN or Inf."""


class RollbackRequest(Message):
    """A rollback by hand: to a snapshot by id, or to the newest healthy one up to a step."""

    kind: Literal[CommandKind.ROLLBACK] = CommandKind.ROLLBACK
    snapshot_id: Annotated[str, Field(max_length=64)] | None = None
    to_step: Step | None = None
    """The newest healthy snapshot at or before this step; without any of both, the newest."""
    skip_steps: Steps = 0
    reduce_lr: ReduceLrParameters | None = None

    @model_validator(mode="after")
    def _one_way_to_name_the_target(self) -> Self:
        if self.snapshot_id is not None and self.to_step is not None:
            raise ValueError("give snapshot_id or to_step, not both")
        return self


CommandRequest: TypeAlias = Annotated[
    RollbackRequest
    | ReduceLrParameters
    | PauseParameters
    | ResumeParameters
    | StopParameters
    | CheckpointNowParameters,
    Field(discriminator="kind"),
]


class CommandCreate(Message):
    """A command by hand."""

    parameters: CommandRequest
    reason: ReasonText
    attempt: AttemptNumber | None = None
    """The attempt that the person looks at; refused if the run has gone on. None: the newest."""
    ttl_seconds: Annotated[float, Field(gt=0, le=7 * 86400)] | None = None
    """How long the job may take it up; None takes the collector's setting."""


class Note(Message):
    """Why a person did something."""

    reason: ReasonText


class ControlUpdate(Message):
    """Disarm: the policy acts on no run at all. Commands by hand still work."""

    disarmed: bool
    reason: ReasonText


class SilenceCreate(Message):
    """Mute a rule for decisions; it goes on being evaluated. Every silence has an end."""

    rule: RuleName
    """A rule's name; `*` is every rule."""
    run_id: str | None = None
    """None is every run."""
    until_step: Step | None = None
    until: datetime | None = None
    reason: ReasonText

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if (self.until is None) == (self.until_step is None):
            raise ValueError("give exactly one of until and until_step")
        if self.until_step is not None and self.run_id is None:
            raise ValueError("until_step needs run_id: every run counts its own steps")
        if self.until is not None and self.until.tzinfo is None:
            raise ValueError("until needs a time zone")
        if self.until is not None and not 1970 < self.until.year < 9999:
            raise ValueError("until is not in the years 1971 to 9998")
        return self


class Silence(Message):
    """A mute that is in force."""

    id: str
    rule: str
    run_id: str | None
    until_step: int | None
    until: datetime | None
    reason: str
    actor: str
    created_at: datetime


class ControlState(Message):
    """The switch over all runs."""

    disarmed: bool
    reason: str
    actor: str
    changed_at: datetime | None
    """None if it was never touched."""
    silences: tuple[Silence, ...] = ()


class RuleHealthInfo(Message):
    """Whether a rule of a run works."""

    name: str
    ok: bool
    last_error: str | None
    evaluations: int


class RunRules(Message):
    """The rules by which a run is judged."""

    hash: str
    text: str
    mode: Mode
    health: tuple[RuleHealthInfo, ...]


class AuditAction(StrEnum):
    """What was done."""

    RUN_REGISTERED = "run_registered"
    RUN_STATE_CHANGED = "run_state_changed"
    RUN_MODE_CHANGED = "run_mode_changed"
    RUN_RULES_CHANGED = "run_rules_changed"
    RUN_DELETED = "run_deleted"
    ATTEMPT_STARTED = "attempt_started"
    INCIDENT_CHANGED = "incident_changed"
    DECISION_MADE = "decision_made"
    COMMAND_CREATED = "command_created"
    COMMAND_CHANGED = "command_changed"
    DISARMED = "disarmed"
    ARMED = "armed"
    SILENCE_CREATED = "silence_created"
    SILENCE_REMOVED = "silence_removed"


class AuditReason(StrEnum):
    """Why, where it is neither a decision of the policy nor a job's refusal."""

    REGISTERED = "registered"
    REPORTED_BY_JOB = "reported_by_job"
    NO_SIGN_OF_LIFE = "no_sign_of_life"
    HEARD_AGAIN = "heard_again"
    APPROVED_BY_PERSON = "approved_by_person"
    REQUESTED_BY_PERSON = "requested_by_person"
    SENT_TO_JOB = "sent_to_job"
    CARRIED_OUT = "carried_out"
    CARRIED_OUT_LATE = "carried_out_late"
    FAILED_IN_JOB = "failed_in_job"
    RULES_REPLACED = "rules_replaced"


class AuditEntry(Message):
    """One row of the append-only log."""

    id: int
    """Ascending in the order of writing."""
    at: datetime
    run_id: str | None
    actor: str
    """`policy`, `job`, `collector` or `person:<name>`."""
    action: AuditAction
    subject: str
    """Id of the command, incident, silence or run it is about."""
    reason: DecisionReason | RejectReason | AuditReason
    message: str
    before: dict[str, JsonValue] | None
    after: dict[str, JsonValue] | None


class AuditPage(Message):
    """Entries behind `after`, oldest first."""

    entries: tuple[AuditEntry, ...]
    next_after: int | None = None
    """Give it as `after` for the next page; None on the last page."""

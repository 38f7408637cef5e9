"""Requests of users and pages to the collector, and its answers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AwareDatetime, Field, JsonValue, model_validator

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
    """Order of a list of runs."""

    CREATED_AT = "created_at"
    LAST_SEEN_AT = "last_seen_at"
    NAME = "name"
    STEP = "step"


class RunQuery(Message):
    """Filter and order of a list of runs."""

    states: tuple[RunState, ...] = ()
    """States of the runs; empty takes every state."""
    name: Annotated[str, Field(max_length=200)] = ""
    """Part of the name or key, or start of the id; case is ignored. Empty takes every run."""
    sort: RunSort = RunSort.CREATED_AT
    """Order of the list."""
    descending: bool = True
    """Reverse the order: newest, largest or last first."""
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    """Runs per page."""
    cursor: Cursor | None = None
    """`next_cursor` of the previous page, with the same sort and order."""


class RunPage(Message):
    """A page of runs, without their attempts."""

    runs: tuple[Run, ...]
    """The runs of this page."""
    total: int
    """Number of matching runs on all pages."""
    next_cursor: str | None = None
    """Cursor of the next page; null on the last one."""


class SeriesInfo(Message):
    """A series of a run."""

    series: str
    """Text form: `metric{label="value"}`, labels sorted by name."""
    metric: str
    """Name of the metric."""
    labels: dict[str, str]
    """Labels by name."""
    catalog: str
    """Id of the catalog that holds the series."""


class SeriesQuery(Message):
    """Which samples to read; the range includes both ends."""

    series: Annotated[tuple[str, ...], Field(min_length=1, max_length=500)]
    """Series in text form."""
    attempt: AttemptNumber | None = None
    """Number of the attempt; null reads every attempt."""
    from_step: Step = 0
    """First step."""
    to_step: Step | None = None
    """Last step; null for no end."""
    max_points: Annotated[int, Field(ge=4, le=100_000)] | None = None
    """Approximate number of samples per series and attempt; null returns all.

    Samples are thinned by buckets that keep their first minimum, first maximum, last and first
    non-finite sample, so that no spike is lost.
    """


class SeriesData(Message):
    """Samples of one series in one attempt. NaN and infinity are data."""

    series: str
    """Text form of the series."""
    attempt: int
    """The attempt of the samples."""
    steps: tuple[int, ...]
    """Completed optimizer steps, ascending."""
    times: tuple[float, ...]
    """Seconds since the epoch by the clock of the job, one per step."""
    values: tuple[float, ...]
    """One value per step."""
    num_samples: int
    """Samples in the range before thinning."""
    num_nonfinite: int
    """How many of them are NaN or infinite."""


class RollbackRequest(Message):
    """A rollback by hand: to a given snapshot, or to the newest healthy one up to a step."""

    kind: Literal[CommandKind.ROLLBACK] = CommandKind.ROLLBACK
    """Always `rollback`."""
    snapshot_id: Annotated[str, Field(max_length=64)] | None = None
    """The snapshot to restore; not together with `to_step`."""
    to_step: Step | None = None
    """Restore the newest healthy snapshot at or before this step; without both, the newest."""
    skip_steps: Steps = 0
    """Steps' worth of data to leave out."""
    reduce_lr: ReduceLrParameters | None = None
    """Reduction of the learning rate after the restore; null for none."""

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
    """What the job has to do."""
    reason: ReasonText
    """Why, for the audit log."""
    attempt: AttemptNumber | None = None
    """The attempt that the user sees; rejected if a newer one exists. Null takes the newest."""
    ttl_seconds: Annotated[float, Field(gt=0, le=7 * 86400)] | None = None
    """Seconds until the command expires; null takes the setting of the collector."""


class Note(Message):
    """Reason of an action of a user."""

    reason: ReasonText
    """Why, for the audit log."""


class ControlUpdate(Message):
    """Disarm or arm the policy on all runs. Commands by hand always work."""

    disarmed: bool
    """True stops the policy from acting, false lets it act again."""
    reason: ReasonText
    """Why, for the audit log."""


class SilenceCreate(Message):
    """Exclude a rule from decisions until a step or moment; it is still evaluated."""

    rule: RuleName
    """Name of the rule; `*` is every rule."""
    run_id: str | None = None
    """The run that it is for; null is every run."""
    until_step: Step | None = None
    """Step at which it ends; needs `run_id`. Give this or `until`."""
    until: AwareDatetime | None = None
    """Moment at which it ends, with a time zone. Give this or `until_step`."""
    reason: ReasonText
    """Why, for the audit log."""

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if (self.until is None) == (self.until_step is None):
            raise ValueError("give exactly one of until and until_step")
        if self.until_step is not None and self.run_id is None:
            raise ValueError("until_step needs run_id: every run counts its own steps")
        if self.until is not None and not 1970 < self.until.year < 9999:
            raise ValueError("until is not in the years 1971 to 9998")
        return self


class Silence(Message):
    """A silence in force."""

    id: str
    """Id of the silence."""
    rule: str
    """Name of the rule; `*` is every rule."""
    run_id: str | None
    """The run that it is for; null is every run."""
    until_step: int | None
    """Step at which it ends; null if it ends at a moment."""
    until: AwareDatetime | None
    """Moment at which it ends; null if it ends at a step."""
    reason: str
    """Why it was created."""
    actor: str
    """Who created it."""
    created_at: AwareDatetime
    """When it was created."""


class ControlState(Message):
    """State of the global switch."""

    disarmed: bool
    """Whether the policy is disarmed on all runs."""
    reason: str
    """Why it was last changed."""
    actor: str
    """Who changed it last."""
    changed_at: AwareDatetime | None
    """When it was last changed; null if never."""
    silences: tuple[Silence, ...] = ()
    """The silences in force."""


class RuleHealthInfo(Message):
    """Health of a rule of a run."""

    name: str
    """Name of the rule."""
    ok: bool
    """Whether its last evaluation succeeded."""
    last_error: str | None
    """Message of its last error; null if there was none."""
    evaluations: int
    """Number of evaluations."""
    note: str = ""
    """Why it cannot judge yet: it selects no series, or is learning; empty if it can."""


class RiskSignal(Message):
    """What raises a run's risk."""

    name: str
    """Name of the feature."""
    weight: float
    """Its part of the log-odds."""


class RunRisk(Message):
    """The risk of a run."""

    probability: float
    """That it does not recover by itself within `horizon` steps, in [0, 1]."""
    horizon: int
    """Steps ahead."""
    signals: tuple[RiskSignal, ...]
    """What raises it most."""


class RunRules(Message):
    """The rules of a run."""

    hash: str
    """Hash of the rule file."""
    text: str
    """The rule file (YAML)."""
    mode: Mode
    """How far the policy may go by itself."""
    health: tuple[RuleHealthInfo, ...]
    """State of each rule."""
    risk: RunRisk | None = None
    """The risk as of its last frames; null while too little is known."""


RuleText = Annotated[str, Field(max_length=1_000_000)]


class RulesUpdate(Message):
    """A new version of a rule file, or an earlier one again."""

    text: RuleText | None = None
    """The rule file (YAML). Give this or `version`."""
    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    """Number of the version to restore."""
    reason: ReasonText
    """Why, for the audit log."""
    dry_run: bool = False
    """Check and compare only; change nothing."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.text is None) == (self.version is None):
            raise ValueError("give exactly one of text and version")
        return self


class RulesChange(Message):
    """What a new version of a rule file changes."""

    version: int
    """Number of the version; of the present one if nothing changes, or on a dry run."""
    hash: str
    """Hash of the rule file."""
    dry_run: bool
    """Whether nothing was changed."""
    kept: tuple[str, ...]
    """Rules that stay as they are, with their state."""
    changed: tuple[str, ...]
    """Rules that restart with another content."""
    added: tuple[str, ...]
    """New rules."""
    removed: tuple[str, ...]
    """Rules that are no longer in the file."""
    warnings: tuple[str, ...] = ()
    """What would never have an effect."""
    num_runs: int = 1
    """Live runs that it concerns."""


class RulesVersion(Message):
    """A version of a rule file."""

    number: int
    """Number of the version, from 1."""
    hash: str
    """Hash of the rule file."""
    text: str
    """The rule file (YAML)."""
    actor: str
    """Who made it: `job`, `collector` or `person:<name>`."""
    reason: str
    """Why it was made."""
    created_at: AwareDatetime
    """When it was made."""


class RulesHistory(Message):
    """The versions of a rule file; the newest is in force."""

    versions: tuple[RulesVersion, ...]
    """The newest versions, newest first."""


class AuditAction(StrEnum):
    """Kind of an audited action."""

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
    """Why, unless it is a decision of the policy or a rejection by the job."""

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
    """An entry of the append-only audit log."""

    id: int
    """Number of the entry, ascending."""
    at: AwareDatetime
    """When it happened."""
    run_id: str | None
    """The run that it is about; null if it is about all."""
    actor: str
    """Who did it: `policy`, `job`, `collector` or `person:<name>`."""
    action: AuditAction
    """What was done."""
    subject: str
    """Id of the command, incident, silence or run that it is about."""
    reason: DecisionReason | RejectReason | AuditReason
    """Why."""
    message: str
    """Explanation for the reader."""
    before: dict[str, JsonValue] | None
    """State before the action; null if there was none."""
    after: dict[str, JsonValue] | None
    """State after the action; null if there is none."""


class AuditPage(Message):
    """A page of the audit log, oldest entry first."""

    entries: tuple[AuditEntry, ...]
    """The entries of this page."""
    next_after: int | None = None
    """`after` of the next page; null on the last one."""

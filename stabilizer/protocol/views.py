"""What the dashboard and scripts are shown of runs: rows of a list, maps, previews, events."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from stabilizer.protocol.batches import AttemptNumber, MarkerKind, SnapshotInfo, Step
from stabilizer.protocol.commands import Command, CommandParameters
from stabilizer.protocol.decisions import DecisionKind, DecisionReason, IncidentState, Severity
from stabilizer.protocol.message import Message
from stabilizer.protocol.queries import CommandRequest
from stabilizer.protocol.runs import Run

LabelText = Annotated[str, Field(max_length=400)]

HELLO_EVENT = "hello"
"""Name of the first server-sent event of a stream; its data is a `HelloEvent`."""
CHANGE_EVENT = "change"
"""Name of every later one; its data is a `ChangeEvent`."""


class Sparkline(Message):
    """The loss over the whole run in few points, extremes kept. NaN and Inf are data."""

    steps: tuple[int, ...]
    """Ascending; the live lineage only, so that no step stands twice."""
    values: tuple[float, ...]


class IncidentHead(Message):
    """What a list shows of an open incident."""

    id: str
    number: int
    """Counts the incidents of the run, from 1."""
    state: IncidentState
    severity: Severity
    decision: DecisionKind
    reason: DecisionReason
    """The latest decision and its reason."""
    rules: tuple[str, ...]
    """Rules whose alerts belong to it, in the order in which they fired."""
    opened_step: int
    first_step: int
    """Step of the first alert in it: the first precursor."""


class RunSummary(Message):
    """A run as one row of a list."""

    run: Run
    """Without its attempts."""
    phase: str | None = None
    """Text of the newest phase change in the live lineage; None if the job announced none."""
    incident: IncidentHead | None = None
    """The newest one that is not resolved."""
    last_intervention: Command | None = None
    """The command that the job carried out last, of any kind."""
    num_proposed: int = 0
    """Commands that wait for a person's word."""
    sparkline: Sparkline | None = None
    """None if there is no loss yet, or if the collector is still reading a long history."""


class Overview(Message):
    """A page of runs, each with what a list shows of it."""

    rows: tuple[RunSummary, ...]
    total: int
    """Runs that the query takes, on all pages."""
    next_cursor: str | None = None
    """None on the last page."""


class SnapshotState(Message):
    """A snapshot that the job holds, with the collector's word on it."""

    snapshot: SnapshotInfo
    healthy: bool
    """Finite, and no alert in the steps after it."""


class MarkerInfo(Message):
    """An event that the job has told."""

    attempt: int
    step: int
    kind: MarkerKind
    text: str
    at: datetime
    """When the collector heard of it."""


class CommandPreviewRequest(Message):
    """A command by hand that is thought of, not given."""

    parameters: CommandRequest
    attempt: AttemptNumber | None = None
    """The attempt that the person looks at; refused if the run has gone on. None: the newest."""


class PreviewWarning(StrEnum):
    """What a person should know before giving a command; none of them forbids it."""

    TARGET_NOT_HEALTHY = "target_not_healthy"
    """The snapshot is finite, but not held to be healthy (yet)."""
    TARGET_ABANDONED = "target_abandoned"
    """The snapshot lies on a branch that a rollback has left."""
    RUN_NOT_REPORTING = "run_not_reporting"
    """The run is lost: nobody may be there to take the command."""
    RUN_PAUSED = "run_paused"
    """The run stands still, and goes on standing after the command."""
    RUN_NOT_PAUSED = "run_not_paused"
    """There is nothing to resume: the job will refuse."""
    OTHER_COMMAND_IN_FLIGHT = "other_command_in_flight"
    """The job has another command, or will get one, that is not settled."""
    COMMAND_PROPOSED = "command_proposed"
    """Another command waits for a person's word."""
    GLOBAL_BATCH_UNKNOWN = "global_batch_unknown"
    """The job did not say how many samples a step takes: what is skipped cannot be counted."""


class CommandPreview(Message):
    """What a command would do if the job took it up now. Nothing has been written."""

    parameters: CommandParameters
    """As the job would get them: a rollback names its target in full."""
    attempt: int
    """The attempt that it would be given to."""
    step: int
    """Where the run stands, in completed optimizer steps."""
    steps_lost: int = 0
    """Steps that have to be trained again; 0 for everything but a rollback."""
    seconds_lost: float | None = None
    """`steps_lost` times the median of recent step_seconds; None if those were not measured."""
    skip_steps: int = 0
    """Steps' worth of data left out."""
    skipped_samples: int | None = None
    """`skip_steps` times the global batch; None if that is not known."""
    skip_from_sample: int | None = None
    """Where in the stream the job goes on and the skip begins; None if nothing is rewound."""
    target_healthy: bool | None = None
    """Whether the target is held to be healthy; None if there is no target."""
    lr_scale_before: float | None = None
    """Newest measured lr_scale of the live lineage; None if not measured."""
    lr_scale_after: float | None = None
    lr: dict[str, float] = Field(default_factory=dict)
    """Newest measured learning rate of the live lineage, by parameter group."""
    lr_after: dict[str, float] = Field(default_factory=dict)
    """The same behind the command: for a rollback the rate at its target, with lr_scale_after.

    The scheduler's next step is not foreseen.
    """
    unsettled: tuple[str, ...] = ()
    """Ids of the run's other commands that are not settled, oldest first."""
    warnings: tuple[PreviewWarning, ...] = ()


class HeatmapStatistic(StrEnum):
    """How the samples of a bucket become one value."""

    MAX = "max"
    MIN = "min"
    MEAN = "mean"
    LAST = "last"


class HeatmapQuery(Message):
    """Which series of a metric to show over which steps. Both ends of the range belong to it."""

    metric: Annotated[str, Field(min_length=1, max_length=120)]
    kind: LabelText | None = None
    """None takes every kind of module; likewise for `tower` and `head`."""
    tower: LabelText | None = None
    head: LabelText | None = None
    attempt: AttemptNumber | None = None
    """None shows the live lineage: what rollbacks have abandoned is left out."""
    from_step: Step = 0
    to_step: Step | None = None
    max_columns: Annotated[int, Field(ge=4, le=2000)] = 200
    statistic: HeatmapStatistic = HeatmapStatistic.MAX


class HeatmapRow(Message):
    """One series."""

    series: str
    """Text form."""
    module: str | None
    tower: str | None
    kind: str | None
    layer: int | None
    """Depth index within the tower; None for what is on no layer."""


class HeatmapColumn(Message):
    """A bucket of measured steps; both ends belong to it."""

    first_step: int
    last_step: int


class Heatmap(Message):
    """Series of one metric over the same columns, the bottom of the model first.

    Rows are in the order of towers (vision, resampler, language, cross_attention, none), then of
    layers, kinds and modules. Columns hold equally many of the steps at which any of the rows was
    measured.
    """

    metric: str
    statistic: HeatmapStatistic
    rows: tuple[HeatmapRow, ...]
    columns: tuple[HeatmapColumn, ...]
    values: tuple[tuple[float | None, ...], ...]
    """One tuple a row. None: not measured; NaN or Inf: measured, and nothing finite was there."""
    nonfinite: tuple[tuple[int, ...], ...]
    """How many samples of each bucket are NaN or Inf."""


class MetricInfo(Message):
    """A metric that a run has, with the labels that it can be narrowed by."""

    metric: str
    kinds: tuple[str, ...]
    """Sorted; likewise `towers` and `heads`."""
    towers: tuple[str, ...]
    heads: tuple[str, ...]
    num_series: int
    has_modules: bool
    """Whether any series of it is of a module, so that a heatmap says something."""


class HelloEvent(Message):
    """First event of a stream."""

    start_id: str
    """Names this start of the collector; another one means that events may have been missed."""


class ChangeEvent(Message):
    """Something has changed. Changes in quick succession are told as one."""

    run_id: str | None
    """None: the switch over all runs, or silences."""
    frames: bool
    """Samples were stored."""
    decisions: bool
    """Something else that a page shows has changed, down to the run being deleted."""
    version: int
    """Counts the run's changes since the collector started; grows with every event of a run."""
    step: int
    """Where the run stands; 0 if there is no run."""

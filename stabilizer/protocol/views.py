"""Views of runs for pages and scripts: lists, heatmaps, previews, events."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, Field

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
"""Name of every later event; its data is a `ChangeEvent`."""


class Sparkline(Message):
    """The loss over the whole run in few points that keep its extremes."""

    steps: tuple[int, ...]
    """Completed optimizer steps, ascending; steps that rollbacks abandoned are left out."""
    values: tuple[float, ...]
    """One loss per step."""


class IncidentHead(Message):
    """Summary of an open incident."""

    id: str
    """Id of the incident."""
    number: int
    """Number of the incident within the run, from 1."""
    state: IncidentState
    """Its state."""
    severity: Severity
    """The highest severity of its alerts."""
    decision: DecisionKind
    """Kind of the latest decision."""
    reason: DecisionReason
    """Reason of the latest decision."""
    rules: tuple[str, ...]
    """Rules of its alerts, in the order in which they fired."""
    opened_step: int
    """Step at which it opened."""
    first_step: int
    """Step of its first alert."""


class RunSummary(Message):
    """A run as a row of a list."""

    run: Run
    """The run without its attempts."""
    phase: str | None = None
    """The newest phase that the job reported, abandoned steps aside; null if none."""
    incident: IncidentHead | None = None
    """The newest incident that is not resolved; null if there is none."""
    last_intervention: Command | None = None
    """The last command that the job applied; null if there is none."""
    num_proposed: int = 0
    """Number of commands that wait for approval."""
    sparkline: Sparkline | None = None
    """The loss; null if there is none, or while the collector still reads a long history."""


class Overview(Message):
    """A page of runs with their summaries."""

    rows: tuple[RunSummary, ...]
    """The runs of this page."""
    total: int
    """Number of matching runs on all pages."""
    next_cursor: str | None = None
    """Cursor of the next page; null on the last one."""


class SnapshotState(Message):
    """A snapshot that the job holds, and whether it is healthy."""

    snapshot: SnapshotInfo
    """The snapshot."""
    healthy: bool
    """Whether it is finite and no alert followed it."""


class MarkerInfo(Message):
    """An event that the job reported."""

    attempt: int
    """The attempt in which it happened."""
    step: int
    """Completed optimizer steps when it happened."""
    kind: MarkerKind
    """What happened."""
    text: str
    """Detail, for example the name of a phase."""
    at: AwareDatetime
    """When the collector received it."""


class CommandPreviewRequest(Message):
    """A command by hand to preview."""

    parameters: CommandRequest
    """What the job would have to do."""
    attempt: AttemptNumber | None = None
    """The attempt that the user sees; rejected if a newer one exists. Null takes the newest."""


class PreviewWarning(StrEnum):
    """Warnings before sending a command; none of them prevents it."""

    TARGET_NOT_HEALTHY = "target_not_healthy"
    """The snapshot is finite, but not (yet) healthy."""
    TARGET_ABANDONED = "target_abandoned"
    """The snapshot is on a branch that a rollback abandoned."""
    RUN_NOT_REPORTING = "run_not_reporting"
    """The run is lost: its job may be unable to receive the command."""
    RUN_PAUSED = "run_paused"
    """The run is paused, and stays paused after the command."""
    RUN_NOT_PAUSED = "run_not_paused"
    """The run is not paused: the job will reject the command."""
    OTHER_COMMAND_IN_FLIGHT = "other_command_in_flight"
    """Another command for the job is not settled."""
    COMMAND_PROPOSED = "command_proposed"
    """Another command waits for approval."""
    GLOBAL_BATCH_UNKNOWN = "global_batch_unknown"
    """The job did not report its global batch: skipped samples cannot be counted."""


class CommandPreview(Message):
    """What a command would do if the job applied it now. Nothing is written."""

    parameters: CommandParameters
    """The parameters that the job would receive, with the target of a rollback resolved."""
    attempt: int
    """The attempt that it would be for."""
    step: int
    """Completed optimizer steps of the run now."""
    steps_lost: int = 0
    """Steps to train again; 0 for everything but a rollback."""
    seconds_lost: float | None = None
    """`steps_lost` times the median of recent step_seconds; null if those are unknown."""
    skip_steps: int = 0
    """Steps' worth of data to leave out."""
    skipped_samples: int | None = None
    """`skip_steps` times the global batch; null if that is unknown."""
    skip_from_sample: int | None = None
    """Position in the stream at which the skip starts; null if nothing is rewound."""
    target_healthy: bool | None = None
    """Whether the target is healthy; null if there is no target."""
    lr_scale_before: float | None = None
    """The newest lr_scale, abandoned steps aside; null if not measured."""
    lr_scale_after: float | None = None
    """The lr_scale after the command; null if not known."""
    lr: dict[str, float] = Field(default_factory=dict)
    """The newest learning rate by parameter group, abandoned steps aside."""
    lr_after: dict[str, float] = Field(default_factory=dict)
    """The learning rate after the command; for a rollback that of its target, with lr_scale_after.

    Changes by the scheduler are not predicted.
    """
    unsettled: tuple[str, ...] = ()
    """Ids of the other commands of the run that are not settled, oldest first."""
    warnings: tuple[PreviewWarning, ...] = ()
    """Warnings for the operator; none of them prevents the command."""


class HeatmapStatistic(StrEnum):
    """How the samples of a bucket become one value."""

    MAX = "max"
    MIN = "min"
    MEAN = "mean"
    LAST = "last"


class HeatmapQuery(Message):
    """Which series of a metric to show over which steps; the range includes both ends."""

    metric: Annotated[str, Field(min_length=1, max_length=120)]
    """Name of the metric."""
    kind: LabelText | None = None
    """Role of the module; null takes every role."""
    tower: LabelText | None = None
    """Part of the model; null takes every part."""
    head: LabelText | None = None
    """Value of the label `head`; null takes every value."""
    attempt: AttemptNumber | None = None
    """Number of the attempt; null shows all steps but those that rollbacks abandoned."""
    from_step: Step = 0
    """First step."""
    to_step: Step | None = None
    """Last step; null for no end."""
    max_columns: Annotated[int, Field(ge=4, le=2000)] = 200
    """Largest number of columns."""
    statistic: HeatmapStatistic = HeatmapStatistic.MAX
    """How the samples of a column become one value."""


class HeatmapRow(Message):
    """A row of a heatmap: one series."""

    series: str
    """Text form of the series."""
    module: str | None
    """Dotted name of the module; null if there is none."""
    tower: str | None
    """Part of the model; null if there is none."""
    kind: str | None
    """Role of the module; null if there is none."""
    layer: int | None
    """Depth index within the tower; null if there is none."""


class HeatmapColumn(Message):
    """A column of a heatmap: a bucket of measured steps, both ends included."""

    first_step: int
    """First step of the bucket."""
    last_step: int
    """Last step of the bucket."""


class Heatmap(Message):
    """Series of one metric over the same columns, from the bottom of the model upwards.

    Rows are ordered by tower (vision, resampler, language, cross_attention, none), then by layer,
    kind and module. Each column holds equally many of the steps at which any row was measured.
    """

    metric: str
    """Name of the metric."""
    statistic: HeatmapStatistic
    """How the samples of a column became one value."""
    rows: tuple[HeatmapRow, ...]
    """The series, one per row."""
    columns: tuple[HeatmapColumn, ...]
    """The buckets of steps, one per column."""
    values: tuple[tuple[float | None, ...], ...]
    """One list per row. Null: not measured. NaN or infinity: no finite sample in the bucket."""
    nonfinite: tuple[tuple[int, ...], ...]
    """Number of NaN and infinite samples of each bucket, one list per row."""


class MetricInfo(Message):
    """A metric of a run, with the labels that it can be filtered by."""

    metric: str
    """Name of the metric."""
    kinds: tuple[str, ...]
    """Roles of the modules that it is measured on, sorted."""
    towers: tuple[str, ...]
    """Parts of the model that it is measured on, sorted."""
    heads: tuple[str, ...]
    """Values of the label `head`, sorted."""
    num_series: int
    """Number of its series."""
    has_modules: bool
    """Whether any of its series belongs to a module, so that a heatmap makes sense."""


class HelloEvent(Message):
    """The first event of a stream."""

    start_id: str
    """Identifies this start of the collector; if it changed, events may be missing."""


class ChangeEvent(Message):
    """A change of a run, or of the global switch and silences. Rapid changes are merged."""

    run_id: str | None
    """The run that changed; null for the global switch and silences."""
    frames: bool
    """Whether samples were stored."""
    decisions: bool
    """Whether anything else that a page shows has changed, deletion of the run included."""
    version: int
    """Number of changes of the run since the collector started; ascending."""
    step: int
    """Completed optimizer steps of the run; 0 without a run."""

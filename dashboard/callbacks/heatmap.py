"""Callbacks of the layer heatmap, and of the attention entropy panel drawn from one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from dash import Dash, Input, Output, State, no_update
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.callbacks.panels import (
    SHOWN_ELSEWHERE,
    VIEW_INPUTS,
    PanelView,
    is_tick,
    read_scene,
    read_view,
)
from dashboard.client import Collector, CollectorApi
from dashboard.components.problems import small_problem
from dashboard.errors import DashboardError, MissingError
from dashboard.figures.figure import FigureDict, empty_figure
from dashboard.figures.heatmap import Colouring, heatmap_chart
from dashboard.figures.line_chart import line_chart
from dashboard.figures.palette import line_colour
from dashboard.figures.samples import Line
from dashboard.figures.scene import Scene
from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.queries import SeriesData
from stabilizer.protocol.runs import Branch
from stabilizer.protocol.views import (
    Heatmap,
    HeatmapQuery,
    HeatmapRow,
    HeatmapStatistic,
    MetricInfo,
)

_FEWEST_COLUMNS: Final = 40
_MOST_COLUMNS: Final = 600
_PIXELS_PER_COLUMN: Final = 4
_LOWEST_IS_WORST: Final = frozenset({Metric.ATTENTION_ENTROPY.value, Metric.Z_LOSS.value})
_WORST_HEAD: Final = "min"
FIRST_CHOICES: Final = (
    Metric.ACTIVATION_RMS.value,
    Metric.ATTENTION_ENTROPY.value,
    Metric.GRAD_NORM.value,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatmapView:
    """Selections of the user above the heatmap."""

    metric: str | None = None
    """None: the first of `FIRST_CHOICES` that the run has."""
    kind: str | None = None
    colouring: str = "default"


@dataclass(frozen=True, kw_only=True, slots=True)
class Maps:
    """The heatmap and the entropy panel."""

    heatmap: FigureDict | None
    """None without per-module metrics."""
    entropy: FigureDict
    metrics: Sequence[str]
    metric: str | None
    kinds: Sequence[str]
    kind: str | None
    """The kind shown; None: all."""
    step: int
    """Step of the run at the time of drawing."""


async def draw_maps(
    client: CollectorApi, run_id: str, view: PanelView, chosen: HeatmapView
) -> Maps:
    """Draw the heatmap and the attention entropy panel.

    Raises:
        DashboardError: The collector is not available, or has no such run.
    """
    run, scene = await read_scene(client, run_id, view.zoom)
    infos = [info for info in await client.metrics(run_id) if info.has_modules]
    by_name = {info.metric: info for info in infos}
    metric = _metric(by_name, chosen.metric)
    figure, kind = None, None
    if metric is not None:
        kind = chosen.kind if chosen.kind in by_name[metric].kinds else None
        heatmap = await _read(client, run_id, by_name[metric], kind, view)
        figure = None if heatmap is None else _figure(heatmap, scene, chosen.colouring)
    entropy = None
    if Metric.ATTENTION_ENTROPY in by_name:
        info = by_name[Metric.ATTENTION_ENTROPY.value]
        entropy = await _read(client, run_id, info, None, view)
    return Maps(
        heatmap=figure,
        entropy=entropy_panel(entropy, scene),
        metrics=sorted(by_name, key=_order),
        metric=metric,
        kinds=by_name[metric].kinds if metric is not None else (),
        kind=kind,
        step=run.step,
    )


def _figure(heatmap: Heatmap, scene: Scene, colouring: str) -> FigureDict:
    chosen = Colouring(colouring) if colouring in set(Colouring) else None
    return heatmap_chart(heatmap, scene, colouring=chosen)


def _metric(by_name: Mapping[str, MetricInfo], chosen: str | None) -> str | None:
    if chosen in by_name:
        return chosen
    return min(by_name, key=_order, default=None)


def _order(metric: str) -> tuple[int, str]:
    """Sort `FIRST_CHOICES` first."""
    place = FIRST_CHOICES.index(metric) if metric in FIRST_CHOICES else len(FIRST_CHOICES)
    return place, metric


async def _read(
    client: CollectorApi, run_id: str, info: MetricInfo, kind: str | None, view: PanelView
) -> Heatmap | None:
    columns = min(max(view.width // _PIXELS_PER_COLUMN, _FEWEST_COLUMNS), _MOST_COLUMNS)
    worst = HeatmapStatistic.MIN if info.metric in _LOWEST_IS_WORST else HeatmapStatistic.MAX
    query = HeatmapQuery(
        metric=info.metric,
        kind=kind,
        head=_WORST_HEAD if _WORST_HEAD in info.heads else None,
        max_columns=columns,
        statistic=worst,
        **view.steps,
    )
    try:
        return await client.heatmap(run_id, query)
    except MissingError as error:
        if error.code == "unknown_run":
            raise
        return None  # no series of this metric and kind


def entropy_panel(heatmap: Heatmap | None, scene: Scene) -> FigureDict:
    """Draw the lowest attention entropy of each tower, where a collapse shows first.

    Args:
        heatmap: Minimum over each bucket of steps, by module; None if not measured.
        scene: Shared by all panels.
    """
    if heatmap is None:
        return line_chart((), (), scene)
    towers = list(dict.fromkeys(_tower(row) for row in heatmap.rows))
    steps = tuple(column.last_step for column in heatmap.columns)
    lines, data = [], []
    for index, tower in enumerate(towers):
        lines.append(Line(series=tower, label=tower, colour=line_colour(index)))
        data.append(_lowest(heatmap, tower, steps))
    # A heatmap has the live lineage in one piece.
    one_piece = replace(scene, branches=(Branch(1, 0, None),))
    return line_chart(lines, data, one_piece)


def _tower(row: HeatmapRow) -> str:
    return (row.tower or "model").replace("_", " ")


def _lowest(heatmap: Heatmap, tower: str, steps: Sequence[int]) -> SeriesData:
    """Return the lowest value of a tower in each column; non-finite values take precedence.

    A cell holds its lowest finite sample and the number of its non-finite ones.
    """
    rows = [index for index, row in enumerate(heatmap.rows) if _tower(row) == tower]
    kept_steps, kept_values = [], []
    for column, step in enumerate(steps):
        values = [value for row in rows if (value := heatmap.values[row][column]) is not None]
        if any(heatmap.nonfinite[row][column] for row in rows):
            values = [value for value in values if not math.isfinite(value)] or [math.nan]
        if values:
            kept_steps.append(step)
            kept_values.append(min(values))
    return SeriesData(
        series=tower,
        attempt=1,
        steps=tuple(kept_steps),
        times=(),
        values=tuple(kept_values),
        num_samples=len(kept_values),
        num_nonfinite=sum(not math.isfinite(value) for value in kept_values),
    )


_MAP_STEPS = 10
"""Layers are measured this often, so a more frequent refresh shows nothing new."""


def register(app: Dash, collector: Collector) -> None:
    """Register the callbacks of the heatmap and the entropy panel."""

    @app.callback(
        output=[
            Output(ids.HEATMAP, "figure"),
            Output(ids.HEATMAP, "style"),
            Output(ids.CHART_ENTROPY, "figure"),
            Output(ids.HEATMAP_METRIC, "data"),
            Output(ids.HEATMAP_METRIC, "value"),
            Output(ids.HEATMAP_KIND, "data"),
            Output(ids.HEATMAP_KIND, "value"),
            Output(ids.HEATMAP_SHOWN, "data"),
            Output(ids.HEATMAP_PROBLEM, "children"),
        ],
        inputs={
            "_clock": Input(ids.CLOCK, "n_intervals"),
            "frames": Input(ids.LIVE_FRAMES, "data"),
            "view": {name: Input(*VIEW_INPUTS[name]) for name in ("width", "zoom")},
            "chosen": {
                "metric": Input(ids.HEATMAP_METRIC, "value"),
                "kind": Input(ids.HEATMAP_KIND, "value"),
                "colouring": Input(ids.HEATMAP_COLOURING, "value"),
                "decisions": Input(ids.LIVE_DECISIONS, "data"),
            },
        },
        state={"run_id": State(ids.RUN_ID, "data"), "shown": State(ids.HEATMAP_SHOWN, "data")},
    )
    async def draw_map(
        _clock: int | None,
        frames: dict[str, Any] | None,
        view: dict[str, Any],
        chosen: dict[str, Any],
        run_id: str,
        shown: dict[str, Any] | None,
    ) -> tuple[Any, ...]:
        seen = read_view(**view)
        asked = {**view, **chosen}
        is_same = shown is not None and shown["asked"] == asked
        if shown and is_same and (is_tick() or not _has_moved(frames, shown, seen.zoom)):
            raise PreventUpdate
        try:
            maps = await draw_maps(collector.for_request(), run_id, seen, _wanted(chosen))
        except SHOWN_ELSEWHERE as error:
            raise PreventUpdate from error
        except DashboardError as error:
            missed = {**shown, "asked": None} if shown else no_update
            return *[no_update] * 7, missed, small_problem(error)
        figure = maps.heatmap or empty_figure("no per-module metrics")
        return (
            figure,
            {"height": figure["layout"]["height"]},
            maps.entropy,
            list(maps.metrics),
            maps.metric,
            list(maps.kinds),
            maps.kind,
            {"asked": {**asked, "metric": maps.metric, "kind": maps.kind}, "step": maps.step},
            None,
        )


def _wanted(chosen: dict[str, Any]) -> HeatmapView:
    colouring = chosen["colouring"] or "default"
    return HeatmapView(metric=chosen["metric"], kind=chosen["kind"], colouring=colouring)


def _has_moved(
    frames: dict[str, Any] | None, shown: dict[str, Any], zoom: tuple[float, float] | None
) -> bool:
    """Tell whether the layers have been measured since the heatmap was drawn."""
    step = (frames or {}).get("step") or 0
    if zoom is not None and zoom[1] < shown["step"]:
        return False
    return not step or abs(step - shown["step"]) >= _MAP_STEPS

"""Heatmaps: a metric over all modules of a model, layer by step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from stabilizer.collector.services.unit_of_work import UnitOfWork
from stabilizer.collector.services.views.grid import Grid, Mask, Steps, split_steps
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.errors import NotFoundError
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.metrics import Kind, Tower
from stabilizer.protocol.runs import Branch, trace_lineage
from stabilizer.protocol.series import SeriesKey
from stabilizer.protocol.views import Heatmap, HeatmapQuery, HeatmapRow, MetricInfo

MAX_CELLS: Final = 1_000_000
"""A map with many rows gets fewer columns than requested."""

_TOWERS: Final = {tower.value: place for place, tower in enumerate(Tower)}
_KINDS: Final = {kind.value: place for place, kind in enumerate(Kind)}

Places = dict[str, list[tuple[int, int]]]
"""Catalog id to (row of the map, slot in the catalog)."""


class HeatmapService:
    """Metrics over many modules. Each call is one read transaction and blocks no writer."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    def metrics(self, run_id: str) -> list[MetricInfo]:
        """Return all metrics of a run, in catalog order.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._uow.reading() as repos:
            repos.runs.require(run_id)
            texts = dict.fromkeys(text for _, text in repos.catalogs.series_of_run(run_id))
        by_metric: dict[str, list[dict[str, str]]] = defaultdict(list)
        for text in texts:
            key = SeriesKey.parse(text)
            by_metric[key.metric].append(key.labels)
        return [_describe(metric, labels) for metric, labels in by_metric.items()]

    def heatmap(self, run_id: str, query: HeatmapQuery) -> Heatmap:
        """Return one value of a metric per series and bucket of steps.

        Raises:
            NotFoundError: There is no such run, or it has no such metric (code `unknown_metric`).
        """
        with self._uow.reading() as repos:
            repos.runs.require(run_id)
            rows, places = _find_rows(repos, run_id, query)
            reader = _Reader(repos, run_id, query, _branches(repos, run_id, query))
            steps = reader.union_of_steps(places)
            num_columns = min(query.max_columns, max(4, MAX_CELLS // max(1, len(rows))))
            columns = split_steps(steps, num_columns)
            grid = Grid(len(rows), columns, query.statistic)
            for pairs, block, taken in reader.blocks(places):
                slots = np.array([slot for _, slot in pairs], np.int64)
                cells = np.ix_(np.flatnonzero(taken), slots)
                present = None if block.present is None else block.present[cells]
                numbers = [number for number, _ in pairs]
                grid.add(numbers, block.steps[taken], block.values[cells], present)
        values, measured = grid.values()
        shown = values.astype(object)
        shown[~measured] = None
        return Heatmap(
            metric=query.metric,
            statistic=query.statistic,
            rows=tuple(rows),
            columns=tuple(columns),
            values=tuple(map(tuple, shown.tolist())),
            nonfinite=tuple(map(tuple, grid.nonfinite.tolist())),
        )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the frames of a run that a query selects."""

    repos: Repositories
    run_id: str
    query: HeatmapQuery
    branches: dict[int, Branch] | None
    """The live part of each attempt; None selects the whole of the query's attempt."""

    @property
    def _range(self) -> tuple[int, int | None]:
        return self.query.from_step, self.query.to_step

    def union_of_steps(self, places: Places) -> Steps:
        """Return the steps at which any series was measured, ascending and distinct."""
        found = [np.empty(0, np.int64)]
        for catalog_id, pairs in places.items():
            slots = [slot for _, slot in pairs]
            stretches = self.repos.frames.measured_steps(
                self.run_id, catalog_id, slots, attempt=self.query.attempt, steps=self._range
            )
            found += [steps[self._taken(attempt, steps)] for attempt, steps in stretches]
        return np.unique(np.concatenate(found))

    def blocks(self, places: Places) -> Iterator[tuple[list[tuple[int, int]], FrameBlock, Mask]]:
        """Yield (series as (row, slot), block, selected frames)."""
        for catalog_id, pairs in places.items():
            blocks = self.repos.frames.read(
                self.run_id, catalog_id, self.query.attempt, self._range
            )
            for attempt, block in blocks:
                taken = self._taken(attempt, block.steps)
                if block.present is not None:
                    # A frame that measured none of the series has no column.
                    taken &= block.present[:, [slot for _, slot in pairs]].any(axis=1)
                yield pairs, block, taken

    def _taken(self, attempt: int, steps: Steps) -> Mask:
        taken = steps >= self.query.from_step
        if self.query.to_step is not None:
            taken &= steps <= self.query.to_step
        if self.branches is None:
            return taken
        live_to = self.branches[attempt].live_to
        return taken if live_to is None else taken & (steps <= live_to)


def _branches(repos: Repositories, run_id: str, query: HeatmapQuery) -> dict[int, Branch] | None:
    if query.attempt is not None:
        return None
    branches = trace_lineage(repos.attempts.of_run(run_id))
    return {branch.attempt: branch for branch in branches}


def _find_rows(
    repos: Repositories, run_id: str, query: HeatmapQuery
) -> tuple[list[HeatmapRow], Places]:
    found = repos.catalogs.places_of_metric(run_id, query.metric)
    if not found:
        raise NotFoundError(f"the run has no metric {query.metric!r}", code="unknown_metric")
    rows = sorted(
        (row for text in found if (row := _row_of(text, query)) is not None), key=_bottom_to_top
    )
    places: Places = defaultdict(list)
    for number, row in enumerate(rows):
        for catalog_id, slot in found[row.series]:
            places[catalog_id].append((number, slot))
    return rows, places


def _row_of(text: str, query: HeatmapQuery) -> HeatmapRow | None:
    labels = SeriesKey.parse(text).labels
    wanted = {"kind": query.kind, "tower": query.tower, "head": query.head}
    if any(value is not None and labels.get(name) != value for name, value in wanted.items()):
        return None
    layer = labels.get("layer", "")
    return HeatmapRow(
        series=text,
        module=labels.get("module"),
        tower=labels.get("tower"),
        kind=labels.get("kind"),
        layer=int(layer) if layer.isdecimal() and layer.isascii() else None,
    )


def _bottom_to_top(row: HeatmapRow) -> tuple[object, ...]:
    return (
        _place(row.tower, _TOWERS),
        (row.layer is None, row.layer or 0),
        _place(row.kind, _KINDS),
        row.module or "",
        row.series,
    )


def _place(name: str | None, known: dict[str, int]) -> tuple[int, str]:
    """Order known names as declared, then unknown names alphabetically, then None."""
    if name is None:
        return len(known) + 1, ""
    return known.get(name, len(known)), name


def _describe(metric: str, labels: list[dict[str, str]]) -> MetricInfo:
    def values(name: str) -> tuple[str, ...]:
        return tuple(sorted({found[name] for found in labels if name in found}))

    return MetricInfo(
        metric=metric,
        kinds=values("kind"),
        towers=values("tower"),
        heads=values("head"),
        num_series=len(labels),
        has_modules=any("module" in found for found in labels),
    )

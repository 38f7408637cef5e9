"""Where the columns of a heatmap lie on the axis of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Final

from stabilizer.protocol.views import HeatmapColumn

_GAP: Final = 3.0
"""Distances between columns that are so many times the usual one are left empty."""
_AROUND: Final = 3
"""Distances on either side that tell what is usual."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns side by side, with empty ones where nothing was measured for long."""

    edges: list[float]
    """One more than there are columns, the empty ones included."""
    sources: list[int | None]
    """Index of each column in the heatmap; None for an empty one."""
    steps: list[tuple[int, int]]
    """First and last step of each column of the heatmap."""

    def spread(self, cells: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """Lay rows of cells out, with None in the empty columns."""
        return [[None if at is None else row[at] for at in self.sources] for row in cells]


def lay_out_columns(columns: Sequence[HeatmapColumn]) -> Columns:
    """Find the edges of columns, halfway between the steps of neighbours.

    Args:
        columns: Ascending, without overlap.
    """
    distances = [after.first_step - before.last_step for before, after in pairwise(columns)]
    usual = _usual_distances(distances)
    edges: list[float] = []
    sources: list[int | None] = []
    for index, column in enumerate(columns):
        if index == 0:
            edges.append(column.first_step - usual[0] / 2)
        sources.append(index)
        distance = distances[index] if index < len(distances) else usual[-1]
        around = usual[min(index, len(usual) - 1)]
        if distance > _GAP * around:
            edges += [column.last_step + around / 2, column.last_step + distance - around / 2]
            sources.append(None)
        else:
            edges.append(column.last_step + distance / 2)
    steps = [(column.first_step, column.last_step) for column in columns]
    return Columns(edges, sources, steps)


def _usual_distances(distances: Sequence[int]) -> list[float]:
    """Return what distance is usual around each of them; at least one.

    Jobs measure more often while something is wrong: so what is usual nearby counts as well as what
    is usual over all. The largest nearby is left out, since it may be a gap itself.
    """
    if not distances:
        return [1.0]
    overall = max(1.0, float(median(distances)))
    nearby = (
        [*distances[max(0, at - _AROUND) : at], *distances[at + 1 : at + 1 + _AROUND]]
        for at in range(len(distances))
    )
    return [max(overall, float(sorted([0, 0, *others])[-2])) for others in nearby]

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
    usual = max(1.0, float(median(distances))) if distances else 1.0
    edges: list[float] = []
    sources: list[int | None] = []
    for index, column in enumerate(columns):
        if index == 0:
            edges.append(column.first_step - usual / 2)
        sources.append(index)
        distance = distances[index] if index < len(distances) else usual
        if distance > _GAP * usual:
            edges += [column.last_step + usual / 2, column.last_step + distance - usual / 2]
            sources.append(None)
        else:
            edges.append(column.last_step + distance / 2)
    steps = [(column.first_step, column.last_step) for column in columns]
    return Columns(edges, sources, steps)

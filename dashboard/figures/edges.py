"""Samples that no line can show, told by marks at the edge of the panel: NaN, Inf and spikes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from dashboard.figures.events import EVENT_AXIS
from dashboard.figures.figure import FigureDict
from dashboard.figures.notes import plain
from dashboard.figures.palette import GREY, NONFINITE
from dashboard.figures.span import Span
from dashboard.words.amounts import number

_LOOKS: Final[Mapping[str, FigureDict]] = {
    "nonfinite": {"symbol": "x-thin-open", "size": 6, "color": NONFINITE, "line": {"width": 1.5}},
    "above": {"symbol": "triangle-up", "size": 7, "color": GREY},
    "below": {"symbol": "triangle-down", "size": 7, "color": GREY},
}
_HEIGHTS: Final = {"nonfinite": 0.81, "above": 0.81, "below": 0.03}


def _told() -> dict[int, list[str]]:
    return defaultdict(list)


@dataclass(slots=True)
class EdgeMarks:
    """By step, what there is to say of it."""

    nonfinite: dict[int, list[str]] = field(default_factory=_told)
    above: dict[int, list[str]] = field(default_factory=_told)
    below: dict[int, list[str]] = field(default_factory=_told)

    def add(self, label: str, steps: Sequence[int], values: Sequence[float], span: Span) -> None:
        """Find the samples of one stretch that need a mark.

        Each NaN or Inf has its own; of spikes that follow one another the farthest stands for all.

        Args:
            label: Name of the line.
            steps: Ascending.
            values: As many.
            span: What the line's axis shows.
        """
        name = plain(label, 60)
        sides = [span.side(value) if math.isfinite(value) else None for value in values]
        at = 0
        for side, group in groupby(sides):
            part = slice(at, at + len(list(group)))
            at = part.stop
            if side is None:
                for step, value in zip(steps[part], values[part], strict=True):
                    self.nonfinite[step].append(f"{name}: {number(value)} at step {step:,}")
            elif side:
                where, text = _spike(steps[part], values[part], side)
                (self.above if side > 0 else self.below)[where].append(f"{name}: {text}")

    def traces(self) -> list[FigureDict]:
        """Three traces, empty ones too, so that later marks find their place."""
        told = {"nonfinite": self.nonfinite, "above": self.above, "below": self.below}
        return [_trace(name, marks) for name, marks in told.items()]


def _spike(steps: Sequence[int], values: Sequence[float], side: int) -> tuple[int, str]:
    farthest = (max if side > 0 else min)(values)
    where = steps[values.index(farthest)]
    text = f"{number(farthest)} at step {where:,}"
    if len(steps) > 1:
        text += f", out of range from step {steps[0]:,} to {steps[-1]:,}"
    return where, text


def _trace(name: str, told: Mapping[int, Sequence[str]]) -> FigureDict:
    return {
        "type": "scatter",
        "uid": name,
        "showlegend": False,
        "mode": "markers",
        "yaxis": EVENT_AXIS,
        "x": list(told),
        "y": [_HEIGHTS[name]] * len(told),
        "customdata": ["\n".join(texts) for texts in told.values()],
        "marker": _LOOKS[name],
        "cliponaxis": False,
    }

"""What all panels of a run share: its lineage, its range of steps, and what happened to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dashboard.figures.events import Events, Note, event_notes, event_shapes, event_traces
from dashboard.figures.figure import FigureDict
from stabilizer.protocol.runs import Attempt, Branch, trace_lineage

ROOM: Final = 0.03
"""Free part of the axis to the right of the newest step; `assets/charts.js` keeps it as well."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Made once for all panels of a page."""

    branches: tuple[Branch, ...]
    """Empty for a run that has not begun."""
    x_range: tuple[float, float]
    is_zoomed: bool
    shapes: tuple[FigureDict, ...]
    traces: tuple[FigureDict, ...]
    notes: tuple[Note, ...]


def make_scene(
    attempts: Sequence[Attempt],
    step: int,
    *,
    events: Events | None = None,
    zoom: tuple[float, float] | None = None,
) -> Scene:
    """Put together what all panels share.

    Args:
        attempts: All of the run, in any order.
        step: Where the run stands, in completed optimizer steps.
        events: What to draw over the panels.
        zoom: First and last step that a person looks at; None for the whole run.
    """
    happened = events or Events()
    x_range = zoom or _whole_range(attempts, step)
    return Scene(
        branches=trace_lineage(attempts),
        x_range=x_range,
        is_zoomed=zoom is not None,
        shapes=tuple(event_shapes(happened, x_range[1])),
        traces=tuple(event_traces(happened)),
        notes=tuple(event_notes(happened, x_range[1])),
    )


def _whole_range(attempts: Sequence[Attempt], step: int) -> tuple[float, float]:
    first = min((attempt.from_step for attempt in attempts), default=0)
    last = max((step, *(attempt.last_step for attempt in attempts)))
    return float(first), last + max(1.0, ROOM * (last - first))


def meta_of(scene: Scene) -> FigureDict:
    """What `assets/charts.js` must know of any figure: it stands in `layout.meta`."""
    return {
        "x_range": list(scene.x_range),
        "is_zoomed": scene.is_zoomed,
        "notes": list(scene.notes),
    }

"""Which series a run's panels draw, and how each line is called."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from dashboard import ids
from dashboard.figures.palette import line_colour
from dashboard.figures.samples import Line
from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.series import SeriesKey

_MAX_LINES: Final = 8
"""More lines than these in one panel nobody tells apart."""


def choose_lines(series: Iterable[str], picked: Sequence[str]) -> Mapping[str, tuple[Line, ...]]:
    """Say which lines each panel has.

    Args:
        series: Text forms of all that the run has.
        picked: Text forms that a person has chosen for the last panel; unknown ones are left out.
    """
    keys = {text: SeriesKey.parse(text) for text in series}
    found = {
        ids.CHART_LOSS: _losses(keys),
        ids.CHART_GRADIENT: _taken(keys, Metric.GRAD_NORM, lambda labels: not labels),
        ids.CHART_RATE: _taken(keys, Metric.LR, lambda labels: set(labels) <= {"group"}),
        ids.CHART_Z_LOSS: _taken(keys, Metric.Z_LOSS, lambda labels: set(labels) <= {"source"}),
        ids.CHART_PICKED: [text for text in picked if text in keys],
    }
    lines = {panel: _lines(panel, texts, keys) for panel, texts in found.items()}
    if Metric.LR_SCALE.value in keys:
        scale = Line(
            series=Metric.LR_SCALE.value,
            label=Metric.LR_SCALE.value,
            colour=line_colour(len(lines[ids.CHART_RATE])),
            secondary=True,
        )
        lines[ids.CHART_RATE] = (*lines[ids.CHART_RATE], scale)
    return lines


def _losses(keys: Mapping[str, SeriesKey]) -> list[str]:
    """Find the loss; of a job that gives only what it backpropagates, that."""
    by_source = (
        _taken(keys, metric, lambda labels: set(labels) <= {"source"})
        for metric in (Metric.LOSS, Metric.LOSS_TOTAL)
    )
    return next((texts for texts in by_source if texts), [])


def _taken(
    keys: Mapping[str, SeriesKey], metric: str, fits: Callable[[Mapping[str, str]], bool]
) -> list[str]:
    """Find the series of a metric, the one without labels first, group 2 before group 10."""
    texts = [text for text, key in keys.items() if key.metric == metric and fits(key.labels)]
    return sorted(texts, key=lambda text: (len(keys[text].labels), _counted(text)))[:_MAX_LINES]


def _counted(text: str) -> list[str | int]:
    parts = re.split(r"([0-9]+)", text)  # every second part is a number
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _lines(panel: str, texts: Sequence[str], keys: Mapping[str, SeriesKey]) -> tuple[Line, ...]:
    return tuple(
        Line(
            series=text,
            label=text if panel == ids.CHART_PICKED else _label(keys[text]),
            colour=line_colour(index),
        )
        for index, text in enumerate(texts)
    )


def _label(key: SeriesKey) -> str:
    """Name a line by what tells it from its neighbours."""
    if not key.labels:
        return "all" if key.metric in (Metric.LOSS, Metric.Z_LOSS) else key.metric
    return ", ".join(key.labels.values()).strip() or str(key)

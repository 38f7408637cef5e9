"""The current level of the loss, by which an intervention is judged."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Final

from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.series import Catalog

WINDOW: Final = 15
LATEST: Final = 3
SPACING: Final = 8
"""Steps between two levels that are remembered."""
REMEMBERED: Final = 64
GAPS: Final = 5
"""Gaps between samples of which the spacing is the median."""
BEFORE: Final = 8
"""Levels before an incident of which the reference is the median."""
TOLERANCE: Final = 0.01
"""A loss within 1 percent of another is as good: less is noise in most runs."""


@dataclass(slots=True)
class LossLevel:
    """The last samples of the run's loss; of the total loss, if the job reports only that."""

    recent: list[float] = field(default_factory=list)
    is_total: bool = False
    past: list[tuple[int, float]] = field(default_factory=list)
    """Steps and levels, oldest first: what an incident is compared with."""
    last_step: int | None = None
    gaps: list[int] = field(default_factory=list)
    """Steps between the last samples."""

    def observe(self, value: float, *, is_total: bool, step: int) -> None:
        """Add a sample of the loss or the total loss."""
        if is_total and self.recent and not self.is_total:
            return
        if self.is_total and not is_total:
            self.recent.clear()
            self.past.clear()
        self.is_total = is_total
        if self.last_step is not None:
            self.gaps = [*self.gaps[1 - GAPS :], step - self.last_step]
        self.last_step = step
        self.recent = [*self.recent[1 - WINDOW :], value]
        if not self.past or step >= self.past[-1][0] + SPACING:
            level = self.level
            if math.isfinite(level):
                self.past = [*self.past[1 - REMEMBERED :], (step, level)]

    def begin_attempt(self, from_step: int) -> None:
        """Forget the samples after a step."""
        self.recent.clear()
        self.last_step = None
        self.past = [(step, level) for step, level in self.past if step <= from_step]

    @property
    def spacing(self) -> int:
        """Steps from one sample to the next; 1 while that is not known."""
        return int(statistics.median_low(self.gaps)) if self.gaps else 1

    def before(self, step: int) -> tuple[float, float]:
        """Return the level before a step and its spread; NaN and 0 if nothing is known of it."""
        levels = [level for at, level in self.past if at < step][-BEFORE:]
        if not levels:
            return math.nan, 0.0
        middle = statistics.median(levels)
        return middle, statistics.median(abs(level - middle) for level in levels)

    @property
    def is_finite(self) -> bool:
        """Whether the last sample is finite; a loss that is not reported counts as finite."""
        return not self.recent or math.isfinite(self.recent[-1])

    @property
    def level(self) -> float:
        """Median of the last samples; NaN if there are none, or if the last is not finite."""
        if not self.recent or not math.isfinite(self.recent[-1]):
            return math.nan
        return statistics.median(value for value in self.recent if math.isfinite(value))

    @property
    def reference(self) -> float:
        """What a later level is compared with: after a jump, the level of the last few samples."""
        level = self.level
        if math.isnan(level):
            return level
        latest = [value for value in self.recent[-LATEST:] if math.isfinite(value)]
        return max(level, statistics.median(latest))

    def is_as_good_as(self, reference: float, spread: float = 0.0) -> bool:
        """Return whether the loss is no worse than an earlier level, within its spread.

        A loss that is not finite is never as good. Any finite loss is as good as a reference that
        is not finite. A loss that is not reported cannot be worse.
        """
        if not self.recent:
            return True
        now = self.level
        if math.isnan(now):
            return False
        tolerance = max(TOLERANCE * abs(reference), 2 * spread)
        return not math.isfinite(reference) or now <= reference + tolerance

    def is_better_than(self, reference: float) -> bool:
        """Return whether the loss is clearly below an earlier level; False if unknown."""
        now = self.level
        if math.isnan(now):
            return False
        return not math.isfinite(reference) or now < reference - TOLERANCE * abs(reference)


def loss_column(catalog: Catalog) -> tuple[int, bool] | None:
    """Find the column of the run's loss, and whether it is the total loss."""
    plain = {key.metric: column for column, key in enumerate(catalog.series) if not key.labels}
    if Metric.LOSS in plain:
        return plain[Metric.LOSS], False
    if Metric.LOSS_TOTAL in plain:
        return plain[Metric.LOSS_TOTAL], True
    return None

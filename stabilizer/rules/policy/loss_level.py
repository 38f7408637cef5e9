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
TOLERANCE: Final = 0.01
"""A loss within 1 percent of another is as good: less is noise in most runs."""


@dataclass(slots=True)
class LossLevel:
    """The last samples of the run's loss; of the total loss, if the job reports only that."""

    recent: list[float] = field(default_factory=list)
    is_total: bool = False

    def observe(self, value: float, *, is_total: bool) -> None:
        """Add a sample of the loss or the total loss."""
        if is_total and self.recent and not self.is_total:
            return
        if self.is_total and not is_total:
            self.recent.clear()
        self.is_total = is_total
        self.recent = [*self.recent[1 - WINDOW :], value]

    def begin_attempt(self) -> None:
        """Forget the samples of the last attempt."""
        self.recent.clear()

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

    def is_as_good_as(self, reference: float) -> bool:
        """Return whether the loss is no worse than an earlier level.

        A loss that is not finite is never as good. Any finite loss is as good as a reference that
        is not finite. A loss that is not reported cannot be worse.
        """
        if not self.recent:
            return True
        now = self.level
        if math.isnan(now):
            return False
        return not math.isfinite(reference) or now <= reference + TOLERANCE * abs(reference)

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

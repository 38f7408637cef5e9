"""The phase of a run, from its loss alone: learning, falling, honeymoon, diverging."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Final

from stabilizer.protocol.runs import Phase

BLOCK: Final = 8
"""Steps of a level, so that the sampling does not matter."""
NOISE: Final = 6.0
"""Units of the noise by which a level must lie above the reference."""
FLOOR: Final = 0.002
"""Smallest noise as a share of the level, or of a tenth of the way that the loss has come."""
SLOW: Final = 0.1
"""Of its average speed so far: slower, the loss is in its honeymoon."""
LATE: Final = 0.125
"""Share of the run so far in which the present speed is measured."""
FEWEST: Final = 8
"""Levels before the phase is known."""
RECENT: Final = 40
"""Levels of which the lower quartile is the reference."""
SPARSE: Final = 32
"""Levels of the whole run that are remembered, each time at twice the distance."""
AGREEING: Final = 6
"""Levels in a row that must show another phase."""
AGREEING_HIGH: Final = 3
"""As many that must show that it diverges."""
BAD: Final = 5
"""Samples in a row that are not finite: the run diverges."""
ACCEPTED: Final = 250
"""Levels above the reference after which they are the new one."""
CHANGES: Final = 16
"""Changes of the phase that are remembered, for a rewind."""
_SECOND: Final = 0.6745 * math.sqrt(6.0)
"""Median absolute second difference of independent samples, in their standard deviations."""
_TINY: Final = 1e-12


@dataclass(slots=True)
class PhaseTracker:
    """Follows the loss of one run; plain data, so that it can be saved.

    The loss falls while it is clearly faster than a tenth of its average speed so far, and is in
    its honeymoon when it is not. It diverges when its level has left the reference by more than
    the noise allows and is not on its way back. Speeds are relative to the run's own: the unit of
    the loss and the sampling do not matter.
    """

    changes: list[tuple[int, Phase]] = field(default_factory=list)
    """Steps at which the phase changed, and to what."""
    recent: list[tuple[int, float]] = field(default_factory=list)
    """The last levels that are not suspect, with the step at which each ended."""
    sparse: list[tuple[int, float]] = field(default_factory=list)
    """Levels of the whole run, at about the same distance."""
    distance: int = BLOCK
    """Steps between those."""
    is_total: bool = False
    first_step: int = -1
    """Of the open block; -1 for none."""
    last_step: int = -1
    total: float = 0.0
    count: int = 0
    num_bad: int = 0
    """Samples in a row that are not finite."""
    num_high: int = 0
    """Levels in a row above the reference."""
    high: float = 0.0
    """The last rise above the reference."""
    candidate: Phase | None = None
    num_agreeing: int = 0

    @property
    def phase(self) -> Phase:
        """The phase now."""
        return self.changes[-1][1] if self.changes else Phase.LEARNING

    def observe(self, step: int, value: float, *, is_total: bool) -> None:
        """Add a sample of the loss, or of the total loss of a job that reports no other."""
        if is_total and not self.is_total and (self.recent or self.count):
            return
        if self.is_total and not is_total:
            self.forget()
        self.is_total = is_total
        if not math.isfinite(value):
            self.num_bad += 1
            if self.num_bad == BAD:
                self._change(step, Phase.DIVERGING)
            return
        self.num_bad = 0
        self.total += value
        self.count += 1
        first = self.first_step if self.first_step >= 0 else step
        gap = step - self.last_step if self.last_step >= 0 else 1
        self.first_step, self.last_step = first, step
        if step + gap - first >= BLOCK:
            self._close(step, self.total / self.count)

    def _close(self, step: int, level: float) -> None:
        self.first_step, self.total, self.count = -1, 0.0, 0
        found = self._judge(step, level)
        if self.num_high == 0:
            self.recent = [*self.recent[1 - RECENT :], (step, level)]
            if not self.sparse or step - self.sparse[-1][0] >= self.distance:
                self._remember(step, level)
        if found is None or found is self.phase:
            self.candidate, self.num_agreeing = None, 0
            return
        self.num_agreeing = self.num_agreeing + 1 if found is self.candidate else 1
        self.candidate = found
        needed = AGREEING_HIGH if found is Phase.DIVERGING else AGREEING
        if self.num_agreeing >= needed:
            self._change(step, found)

    def _remember(self, step: int, level: float) -> None:
        self.sparse.append((step, level))
        if len(self.sparse) > SPARSE:
            self.sparse = self.sparse[::2]
            self.distance *= 2

    def _judge(self, step: int, level: float) -> Phase | None:
        """Return the phase that a level shows; None if it shows none."""
        if len(self.recent) < FEWEST:
            return None
        levels = [value for _, value in self.recent]
        reference = sorted(levels)[len(levels) // 4]
        noise = self._noise(levels, reference)
        before, self.high = self.high, max(0.0, level - reference)
        if self.high > NOISE * noise:
            self.num_high += 1
            if self.num_high > ACCEPTED:
                self.recent, self.num_high = [], 0
                return Phase.HONEYMOON
            is_healing = self.high < 0.9 * before
            return None if is_healing and self.phase is not Phase.DIVERGING else Phase.DIVERGING
        self.num_high = 0
        return self._fall(step, level, noise)

    def _noise(self, levels: list[float], reference: float) -> float:
        seconds = [
            abs(a - 2 * b + c) for a, b, c in zip(levels, levels[1:], levels[2:], strict=False)
        ]
        top = max((value for _, value in self.sparse), default=reference)
        scale = max(abs(reference), 0.1 * (top - reference))
        return max(statistics.median(seconds) / _SECOND, FLOOR * scale, _TINY)

    def _fall(self, step: int, level: float, noise: float) -> Phase:
        """Compare the speed of late with the average speed so far."""
        start, top = self.sparse[0]
        late = step - max(LATE * (step - start), FEWEST * BLOCK)
        past = [point for point in (*self.sparse, *self.recent) if point[0] <= late]
        if not past or step <= start:
            return self.phase
        at, then = max(past)
        fall = then - level
        average = (top - level) / (step - start)
        is_fast = fall / (step - at) > SLOW * average
        return Phase.FALLING if is_fast and fall > 2 * noise else Phase.HONEYMOON

    def _change(self, step: int, phase: Phase) -> None:
        if phase is not self.phase:
            self.changes = [*self.changes[1 - CHANGES :], (step, phase)]
        self.candidate, self.num_agreeing = None, 0

    def rewind(self, step: int) -> None:
        """Forget what came after a step: a new attempt continues from there."""
        self.recent = [point for point in self.recent if point[0] <= step]
        self.sparse = [point for point in self.sparse if point[0] <= step]
        self.changes = [change for change in self.changes if change[0] <= step]
        self._restart()

    def forget(self) -> None:
        """Reset: the job has entered a phase of its own, in which other values are normal."""
        self.recent, self.sparse, self.changes = [], [], []
        self.distance = BLOCK
        self._restart()

    def _restart(self) -> None:
        self.first_step = self.last_step = -1
        self.total = self.high = 0.0
        self.count = self.num_bad = self.num_high = self.num_agreeing = 0
        self.candidate = None

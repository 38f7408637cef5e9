"""Levels of series against their own recent past, as the features of the risk need them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from stabilizer.protocol.metrics import Metric
from stabilizer.rules.detectors.interface import BoolArray, FloatArray

BLOCK: Final = 4
"""Steps of which a level is the mean."""
RECENT: Final = 24
"""Levels of whose lower quartile a rise is measured."""
REMEMBERED: Final = 64
"""Levels of which the noise is estimated."""
SUSPECT: Final = 3.0
"""Units of noise from which a level is not learned."""
PATIENCE: Final = 250
FADE: Final = math.exp(-BLOCK / 100)
FLOOR: Final = 0.002
"""Smallest noise, as a share of the level."""
_LAG: Final = 2
_NORMAL: Final = 0.6745 * math.sqrt(6.0)
"""Median of an absolute second difference of independent normal deviates of spread 1."""
_REFRESH: Final = 4
"""Levels between two estimates of the noise."""


@dataclass(slots=True)
class Level:
    """The level of one series: plain data.

    Levels are means over `BLOCK` steps, or single samples where they are rarer. Those that are
    suspect are not learned, for `patience` levels at most.
    """

    patience: int = PATIENCE
    """Suspect levels in a row after which they are the new normal."""
    largest: float = math.inf
    """Rises from which on `patience` is `PATIENCE`."""
    floor: float = 1e-9
    """Smallest noise."""
    calm: list[tuple[int, float]] = field(default_factory=list)
    """Steps and levels that are learned, oldest first."""
    last: list[float] = field(default_factory=list)
    """The last levels, learned or not."""
    opened: int = -1
    total: float = 0.0
    count: int = 0
    reference: float = math.nan
    noise: float = math.nan
    first: float = math.nan
    """The first level."""
    area: float = 0.0
    """The rises of late, as shares of the way that the series has come, fading."""
    good_step: int = -1
    """The last step at which the level was within a unit of noise of its reference."""
    since: int = -1
    """The step at which the present rise began; -1 if there is none."""
    peak: float = -math.inf
    streak: int = 0
    fresh: int = 0
    """Levels since the noise was estimated."""

    def add(self, step: int, value: float) -> None:
        """Add a finite sample."""
        if self.opened < 0:
            self.opened = step
        self.total += value
        self.count += 1
        if step - self.opened + 1 >= BLOCK:
            self._close(step, self.total / self.count)
            self.opened, self.total, self.count = -1, 0.0, 0

    @property
    def is_known(self) -> bool:
        """Whether there is a reference."""
        return not math.isnan(self.noise) and bool(self.last)

    @property
    def rise(self) -> float:
        """The level above the reference; 0 if unknown."""
        return self._level - self.reference if self.is_known else 0.0

    @property
    def score(self) -> float:
        """The rise in units of the noise."""
        return self.rise / self._unit if self.is_known else 0.0

    @property
    def relative_rise(self) -> float:
        """The rise as a share of the reference."""
        return self.rise / max(abs(self.reference), 1e-9) if self.is_known else 0.0

    @property
    def healed(self) -> float:
        """The share of the present rise that is gone since its peak, in [0, 1]."""
        if self.since < 0 or self.peak <= self.reference:
            return 0.0
        return min(1.0, max(0.0, 1.0 - self.rise / (self.peak - self.reference)))

    @property
    def trend(self) -> float:
        """What the level has gained over the last eight, in units of the noise."""
        return (self.last[-1] - self.last[0]) / self._unit if self.is_known else 0.0

    @property
    def lost(self) -> float:
        """The rise as a share of the way that the series has come."""
        return self.rise / self._way if self.is_known else 0.0

    @property
    def _way(self) -> float:
        return max(self.first - self.reference, 5 * self._unit)

    @property
    def _unit(self) -> float:
        return max(self.noise, FLOOR * abs(self.reference), self.floor)

    @property
    def _level(self) -> float:
        """The median of the last three: one spike is none."""
        recent = sorted(self.last[-3:])
        return recent[len(recent) // 2]

    def _close(self, step: int, mean: float) -> None:
        self.last = [*self.last[-7:], mean]
        level = self._level
        if math.isnan(self.first):
            self.first = level
        if not self.is_known or self.score < 1:
            self.good_step = step
        is_suspect = self.is_known and abs(self.score) > SUSPECT
        if is_suspect and level > self.reference:
            if self.since < 0:
                self.since, self.peak = step, level
            self.peak = max(self.peak, level)
        else:
            self.since, self.peak = -1, -math.inf
        self.area = FADE * self.area + (min(2.0, self.lost) if self.since >= 0 else 0.0)
        self.streak = self.streak + 1 if is_suspect else 0
        if self.streak > (self.patience if self.rise < self.largest else PATIENCE):
            self.calm.clear()
            self.streak, self.noise = 0, math.nan
        if not is_suspect or level < self.reference or self.streak == 0:
            self._learn(step, mean)

    def _learn(self, step: int, mean: float) -> None:
        self.calm = [*self.calm[1 - REMEMBERED :], (step, mean)]
        self.fresh += 1
        if len(self.calm) < 2 * _LAG + 4:
            return
        recent = sorted(value for _, value in self.calm[-RECENT:])
        self.reference = recent[len(recent) // 4]
        if self.fresh >= _REFRESH or math.isnan(self.noise):
            self.fresh = 0
            values = np.array([value for _, value in self.calm])
            second = np.abs(values[2 * _LAG :] - 2 * values[_LAG:-_LAG] + values[: -2 * _LAG])
            self.noise = float(np.median(second)) / _NORMAL

    def rewind(self, step: int) -> None:
        """Forget what was learned after a step."""
        self.calm = [(at, value) for at, value in self.calm if at <= step]
        self.last = [value for _, value in self.calm[-8:]]
        self.area, self.good_step = 0.0, min(self.good_step, step)
        self.opened, self.total, self.count = -1, 0.0, 0
        self.since, self.peak, self.streak = -1, -math.inf, 0


@dataclass(frozen=True)
class LayerSummary:
    """What the layers say together."""

    is_known: bool
    moved: float
    """Share of modules whose output has left its level."""
    shift: float
    """Median of how far the outputs have moved, in powers of e."""
    entropy_fall: float
    """What has gone of the attention entropy of the layer that has lost most, in [0, 1]."""
    logit_growth: float
    """How far the largest attention logit has grown over its early value, in powers of ten."""


class Layers:
    """Outputs of layers against their running mean, attention against its early value."""

    EARLY: Final = 8
    """Samples of which the early value is the mean."""
    RATE: Final = 0.1
    MOVED: Final = 8.0
    LEAST: Final = 0.2

    def __init__(self) -> None:
        self._groups: dict[str, FloatArray] = {}
        """[4, N] by catalog and metric: samples, mean or early value, spread, latest."""

    def add(self, name: str, metric: str, values: FloatArray, here: BoolArray) -> None:
        """Add one sample of some series of a metric."""
        group = self._groups.get(name)
        if group is None or group.shape[1] != len(values):
            group = self._groups[name] = np.zeros((4, len(values)))
        values = np.log(np.maximum(values, 1e-12)) if metric == Metric.ACTIVATION_RMS else values
        count, mean, spread, latest = group
        latest[here] = values[here]
        if metric == Metric.ACTIVATION_RMS:
            deviation = np.abs(values - mean)
            is_learned = here & ((count < self.EARLY) | (deviation <= self._limit(spread)))
            rate = np.maximum(self.RATE, 1 / (count + 1))
            spread += np.where(is_learned & (count > 0), rate * (deviation - spread), 0.0)
        else:
            is_learned = here & (count < self.EARLY)
            rate = 1 / (count + 1)
        mean += np.where(is_learned, rate * (values - mean), 0.0)
        count += here

    def _limit(self, spread: FloatArray) -> FloatArray:
        return np.maximum(self.MOVED * spread, self.LEAST)

    def summary(self) -> LayerSummary:
        """Return what the layers say now."""
        shifts, entropies, logits = [], [], []
        moved = known = 0
        for name, (count, mean, spread, latest) in self._groups.items():
            ready = count >= self.EARLY
            if not ready.any():
                continue
            own = latest[ready] - mean[ready]
            if name.endswith(Metric.ACTIVATION_RMS):
                moved += int((np.abs(own) > self._limit(spread[ready])).sum())
                known += len(own)
                shifts.append(np.abs(own))
            elif name.endswith(Metric.ATTENTION_ENTROPY):
                entropies.append(float(np.max(-own / np.maximum(mean[ready], 1e-6))))
            else:
                largest = np.maximum(latest[ready], 1e-3) / np.maximum(mean[ready], 1e-3)
                logits.append(math.log10(float(np.max(largest))))
        return LayerSummary(
            is_known=bool(known or entropies or logits),
            moved=moved / known if known else 0.0,
            shift=min(5.0, float(np.median(np.concatenate(shifts)))) if shifts else 0.0,
            entropy_fall=min(1.0, max(0.0, *entropies, 0.0)),
            logit_growth=min(4.0, max(0.0, *logits, 0.0)),
        )

    def rewind(self) -> None:
        """Return to the levels that are learned: what has moved is undone."""
        for count, mean, _, latest in self._groups.values():
            latest[count > 0] = mean[count > 0]

    def state(self) -> dict[str, FloatArray]:
        """Return the arrays."""
        return dict(self._groups)

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over the arrays."""
        self._groups = {name: np.array(array, np.float64) for name, array in state.items()}

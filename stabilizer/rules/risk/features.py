"""What the risk is computed from, read step by step in units of the run's own noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from stabilizer.protocol.frames import Float32Array
from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.series import Catalog
from stabilizer.rules.detectors.interface import BoolArray
from stabilizer.rules.policy.loss_level import loss_column
from stabilizer.rules.risk.levels import BLOCK, Layers, Level

WARM_UP: Final = 12
"""Levels of the loss that are known before there is a risk."""
FEATURES: Final = (
    *("rise", "relative_rise", "age", "healed", "trend", "stagnation"),
    *("lost", "area"),
    *("gradient", "gradient_rise", "gradient_fall", "rate", "rate_growth"),
    *("layers", "layers_shift", "entropy_fall", "logit_growth"),
    *("sources", "nonfinite", "skipped", "inside"),
    *("rise_and_gradient", "rise_and_layers", "rise_and_rate"),
)
INSIDE: Final = frozenset(
    ("layers", "layers_shift", "entropy_fall", "logit_growth", "inside", "rise_and_layers")
)
"""Those that are 0 if the job does not measure its layers."""
_JUMP: Final = 1.25
"""Growth of the learning rate over `_LAG` steps that counts as a jump, after `_LAG` * 5 steps."""
_LAG: Final = 10


@dataclass(frozen=True)
class _Columns:
    """Where a catalog has what the features are read from."""

    loss: int | None
    gradient: int | None
    skipped: int | None
    rates: tuple[int, ...]
    sources: tuple[int, ...]
    layers: Mapping[str, npt.NDArray[np.int64]]
    """Columns by metric; only of metrics that are there."""


@dataclass(slots=True)
class _Scalars:
    """What is remembered of single series; plain data."""

    loss: Level = field(default_factory=Level)
    gradient: Level = field(default_factory=lambda: Level(patience=12, largest=1.5, floor=0.05))
    """Logarithms. Norms that grow with learning are soon normal."""
    sources: dict[str, Level] = field(default_factory=dict)
    rates: list[tuple[int, float]] = field(default_factory=list)
    """Steps and rates, the newest last."""
    base_rate: float = math.nan
    """The rate before it jumped; NaN if it has not."""
    nonfinite: int = 0
    """Losses in a row that are not finite."""
    skipped: float = 0.0
    """Share of the last steps that were left out."""


_SCALARS: Final = TypeAdapter(_Scalars)


class RiskFeatures:
    """Reads the features of one run. Pure, and of fixed size."""

    def __init__(self) -> None:
        self._scalars = _Scalars()
        self._layers = Layers()
        self._columns: dict[str, _Columns] = {}
        self._step = -1

    def observe(
        self, catalog: Catalog, step: int, values: Float32Array, present: BoolArray | None = None
    ) -> None:
        """Add one frame; steps ascend within an attempt."""
        columns = self._columns.get(catalog.id)
        if columns is None:
            columns = self._columns[catalog.id] = _find_columns(catalog)
        self._step = max(self._step, step)

        def read(column: int | None) -> float | None:
            is_there = column is not None and (present is None or present[column])
            return float(values[column]) if is_there else None

        self._add_loss(step, read(columns.loss), read(columns.skipped))
        if (norm := read(columns.gradient)) is not None and math.isfinite(norm) and norm > 0:
            self._scalars.gradient.add(step, math.log(norm))
        rates = [rate for column in columns.rates if (rate := read(column)) is not None]
        if rates:
            self._add_rate(step, max(rates))
        for column in columns.sources:
            if (loss := read(column)) is not None and math.isfinite(loss):
                name = str(catalog.series[column])
                self._scalars.sources.setdefault(name, Level()).add(step, loss)
        for metric, places in columns.layers.items():
            here = np.isfinite(values[places])
            if present is not None:
                here &= present[places]
            if here.any():
                own = values[places].astype(np.float64)
                self._layers.add(f"{catalog.id}.{metric}", metric, own, here)

    def _add_loss(self, step: int, loss: float | None, skipped: float | None) -> None:
        own = self._scalars
        if skipped is not None:
            own.skipped += (float(skipped > 0) - own.skipped) / 20
        if loss is None:
            return
        if not math.isfinite(loss):
            own.nonfinite += not (skipped is not None and skipped > 0)
            return
        own.nonfinite = 0
        own.loss.add(step, loss)

    def _add_rate(self, step: int, rate: float) -> None:
        own = self._scalars
        while len(own.rates) > 1 and own.rates[1][0] <= step - _LAG:
            del own.rates[0]
        own.rates.append((step, rate))
        before = own.rates[0][1]
        if math.isnan(own.base_rate):
            if step > 5 * _LAG and 0 < _JUMP * before < rate:
                own.base_rate = before
        elif rate < 1.1 * own.base_rate:
            own.base_rate = math.nan

    @property
    def ready(self) -> bool:
        """Whether enough is known for a risk."""
        return len(self._scalars.loss.calm) >= WARM_UP or self._scalars.nonfinite > 0

    def features(self) -> list[float]:
        """Return the features as of now, in the order of `FEATURES`."""
        own, loss, gradient = self._scalars, self._scalars.loss, self._scalars.gradient
        rise = math.log1p(min(max(loss.score, 0.0), 200.0))
        moved = math.log1p(min(abs(gradient.score), 100.0)) if gradient.is_known else 0.0
        shift = min(max(gradient.rise, -5.0), 5.0) if gradient.is_known else 0.0
        age = math.log1p(max(0, self._step - loss.since) / BLOCK) if loss.since >= 0 else 0.0
        healed = loss.healed
        rate, growth = self._rates()
        layers = self._layers.summary()
        risen = [level for level in own.sources.values() if level.is_known]
        sources = sum(each.score > 3 for each in risen) / len(risen) if risen else 0.5
        stagnation = math.log1p(max(0, self._step - loss.good_step) / 32)
        return [
            *(rise, math.log1p(10 * min(max(loss.relative_rise, 0.0), 2.0)), age, healed),
            *(min(max(loss.trend, -10.0), 10.0) / 10, stagnation),
            *(min(max(loss.lost, 0.0), 2.0), math.log1p(loss.area)),
            *(moved, max(0.0, shift), max(0.0, -shift), rate, growth),
            *(layers.moved, layers.shift, layers.entropy_fall, layers.logit_growth),
            *(sources if age else 0.0, float(own.nonfinite > 0), own.skipped),
            float(layers.is_known),
            *(rise * moved, rise * layers.moved, rise * rate),
        ]

    def _rates(self) -> tuple[float, float]:
        own = self._scalars
        if not own.rates:
            return 0.0, 0.0
        now = own.rates[-1][1]
        jump = 0.0
        if not math.isnan(own.base_rate):
            jump = min(4.0, math.log(now / own.base_rate))
        before = own.rates[0][1]
        late = self._step > 5 * _LAG and before > 0 < now
        return jump, min(2.0, max(0.0, math.log(now / before))) if late else 0.0

    def rewind(self, step: int) -> None:
        """Forget what was learned after a step: a new attempt continues from there."""
        own = self._scalars
        for level in (own.loss, own.gradient, *own.sources.values()):
            level.rewind(step)
        own.rates = [(at, rate) for at, rate in own.rates if at <= step]
        own.base_rate, own.nonfinite, own.skipped = math.nan, 0, 0.0
        self._step = min(self._step, step)
        self._layers.rewind()

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return what `load` needs: plain data and arrays."""
        head = {"scalars": _SCALARS.dump_python(self._scalars, mode="json"), "step": self._step}
        return head, self._layers.state()

    def load(self, head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Take over a state.

        Raises:
            KeyError: Something is missing.
            ValueError: Something does not fit.
        """
        self._scalars = _SCALARS.validate_python(head["scalars"])
        self._step = int(head["step"])
        self._layers.load(arrays)


def _find_columns(catalog: Catalog) -> _Columns:
    found = loss_column(catalog)
    gradient = skipped = None
    rates, sources = [], []
    layers: dict[str, list[int]] = {
        Metric.ACTIVATION_RMS: [],
        Metric.ATTENTION_ENTROPY: [],
        Metric.ATTENTION_LOGIT_MAX: [],
    }
    for column, key in enumerate(catalog.series):
        if key.metric == Metric.GRAD_NORM and not key.labels:
            gradient = column
        elif key.metric == "step_skipped":
            skipped = column
        elif key.metric == Metric.LR:
            rates.append(column)
        elif key.metric == Metric.LOSS and set(key.labels) == {"source"}:
            sources.append(column)
        elif key.metric in layers and key.labels.get("head") != "min":
            layers[key.metric].append(column)
    return _Columns(
        None if found is None else found[0],
        gradient,
        skipped,
        tuple(rates),
        tuple(sources),
        {metric: np.array(columns) for metric, columns in layers.items() if columns},
    )

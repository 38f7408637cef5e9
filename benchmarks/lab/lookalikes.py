"""Changes that only look like faults: what an engineer would leave alone."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

import numpy as np
from typing_extensions import override

from benchmarks.lab.families import Batch
from benchmarks.lab.faults import spoil
from benchmarks.lab.members import MIX, Change, Row
from benchmarks.lab.training import World


class LookAlike(Change):
    """A change that is no fault."""

    kind: ClassVar[Literal["fault", "lookalike", "healthy"]] = "lookalike"
    environment = True


class DataOrder(LookAlike):
    """The data come unshuffled: one source for some steps, then the other."""

    name = "data_order"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(generator.integers(15, 50))

    @override
    def mix(self, step: int) -> tuple[float, ...]:
        if step < self.onset:
            return MIX
        is_first = (step - self.onset) % (2 * self.amount) < self.amount
        return (0.0, 1.0, 0.0) if is_first else (1.0, 0.0, 0.0)


class NewSource(LookAlike):
    """A new source joins the others."""

    name = "new_source"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(generator.uniform(0.2, 0.6))

    @override
    def mix(self, step: int) -> tuple[float, ...]:
        if step < self.onset:
            return MIX
        return (0.6 * (1 - self.amount), 0.4 * (1 - self.amount), self.amount)


class NoisierData(LookAlike):
    """Part of every batch is noise from a step on: the loss steps up and stays flat."""

    name = "noisier_data"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(generator.integers(1, 3))

    @override
    def spoil(self, batch: Batch, step: int, world: World) -> None:
        if step >= self.onset:
            spoil(batch, int(self.amount), step)


class HealingSpike(LookAlike):
    """A few bad batches: a spike that heals by itself."""

    name = "healing_spike"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(generator.integers(1, 6))

    @override
    def spoil(self, batch: Batch, step: int, world: World) -> None:
        if self.onset <= step < self.onset + self.amount:
            spoil(batch, world.batch, step)


class WarmRestart(LookAlike):
    """The schedule goes back up and decays again."""

    name = "warm_restart"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(generator.uniform(0.5, 1.5))

    @override
    def rate(self, step: int) -> float:
        since = step - self.onset
        return 1.0 if since < 0 else 1.0 + self.amount * max(0.0, 1 - since / 120)


class RateDecay(LookAlike):
    """The rate falls to a part of itself at once: the loss steps down."""

    name = "rate_decay"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(generator.uniform(0.1, 0.4))

    @override
    def rate(self, step: int) -> float:
        return self.amount if step >= self.onset else 1.0


class SmallerBatch(LookAlike):
    """A quarter of the samples at each step: noisier, no worse."""

    name = "smaller_batch"

    @override
    def distinct(self, step: int, batch: int) -> int:
        return batch if step < self.onset else max(1, batch // 4)


class Resume(LookAlike):
    """A resume without optimizer state: a bump that heals."""

    name = "resume"
    environment = False
    marker = "resume"

    @override
    def strike(self, row: Row) -> None:
        for moment in row.moments.values():
            moment.zero_()
        row.counts.zero_()


class GradientSpikes(LookAlike):
    """Single enormous gradients, which clipping makes harmless."""

    name = "gradient_spikes"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(np.exp(generator.uniform(np.log(10), np.log(1000))))

    @override
    def on_gradients(self, row: Row) -> None:
        since = row.member.step - self.onset
        if since >= 0 and since % 47 == 0:
            row.gradients *= self.amount


class ScalerSkips(LookAlike):
    """The scale is far too large for a while: steps are skipped until it has halved enough."""

    name = "scaler_skips"
    environment = False

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(2 ** generator.integers(4, 10))

    @classmethod
    @override
    def applies(cls, world: World) -> bool:
        return world.setting.precision == "fp16"

    @override
    def strike(self, row: Row) -> None:
        row.member.held.scale *= self.amount


LOOKALIKES: Final[tuple[type[LookAlike], ...]] = (
    DataOrder,
    NewSource,
    NoisierData,
    HealingSpike,
    WarmRestart,
    RateDecay,
    SmallerBatch,
    Resume,
    GradientSpikes,
    ScalerSkips,
)

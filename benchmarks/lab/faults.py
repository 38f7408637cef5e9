"""Causes of instability. Whether one hurts, and what rescues from it, is computed, not assumed."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

import numpy as np
import torch
from typing_extensions import override

from benchmarks.lab.corpora import CLASSES, VOCABULARY
from benchmarks.lab.families import Batch
from benchmarks.lab.members import Change, Row
from benchmarks.lab.training import World
from stabilizer.protocol.metrics import Kind


class Fault(Change):
    """A cause of instability."""

    kind: ClassVar[Literal["fault", "lookalike", "healthy"]] = "fault"


class LrJump(Fault):
    """The learning rate is too high from a step on, until a rollback restores it."""

    name = "lr_jump"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(np.exp(generator.uniform(np.log(12), np.log(100))))

    @override
    def strike(self, row: Row) -> None:
        row.member.held.rate *= self.amount


class LrRestart(LrJump):
    """The schedule begins again, too high, with its warm-up (IDEFICS-80B, 2023-06-07)."""

    name = "lr_restart"

    @override
    def strike(self, row: Row) -> None:
        super().strike(row)
        row.member.held.clock = row.member.step


class LrSchedule(LrJump):
    """The schedule itself becomes too high: a rollback meets it again, only a cut helps."""

    name = "lr_schedule"
    environment = True

    @override
    def strike(self, row: Row) -> None:
        """It is in the schedule."""

    @override
    def rate(self, step: int) -> float:
        return self.amount if step >= self.onset else 1.0


class LrCreep(Fault):
    """The rate grows by some percent at every step."""

    name = "lr_creep"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(generator.uniform(1.02, 1.05))

    @override
    def strike(self, row: Row) -> None:
        row.member.held.ill_since = row.member.step

    @override
    def after_step(self, row: Row) -> None:
        held = row.member.held
        if held.ill_since is not None:
            held.rate = min(held.rate * self.amount, 300.0)


class BadData(Fault):
    """A stretch of the stream is garbage: random tokens, labels and pictures."""

    name = "bad_data"
    environment = True

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(generator.integers(60, 180))

    @override
    def spoil(self, batch: Batch, step: int, world: World) -> None:
        if self.onset <= step < self.onset + self.amount:
            spoil(batch, len(next(iter(batch.values()))), step)


class BadDataForever(BadData):
    """The stream is garbage from a step on: beyond rescue."""

    name = "bad_data_forever"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = 1e9


class WrongTargets(BadData):
    """A stretch of the stream has the targets of other samples."""

    name = "wrong_targets"

    @override
    def spoil(self, batch: Batch, step: int, world: World) -> None:
        if self.onset <= step < self.onset + self.amount:
            for name in ("target", "labels"):
                if name in batch:
                    batch[name].copy_(batch[name].roll(1, dims=0).clone())
            if "tokens" in batch:  # text predicts itself: its second half is another's
                half = batch["tokens"].shape[1] // 2
                batch["tokens"][:, half:] = batch["tokens"][:, half:].roll(1, dims=0).flip(1)


class ConstantData(BadData):
    """A stretch of the stream is one token, one label: the loss falls to nothing."""

    name = "constant_data"

    @override
    def spoil(self, batch: Batch, step: int, world: World) -> None:
        if self.onset <= step < self.onset + self.amount:
            for values in batch.values():
                values.fill_(1)


class RepeatedBatch(BadData):
    """A stretch of the stream repeats one sample."""

    name = "repeated_sample"

    @override
    def spoil(self, batch: Batch, step: int, world: World) -> None:
        if self.onset <= step < self.onset + self.amount:
            for name, values in batch.items():
                values.copy_(world.pools[name][0, self.onset].expand_as(values))


class ScaledWeights(Fault):
    """The weights of all outer projections are multiplied."""

    name = "scaled_weights"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(np.exp(generator.uniform(np.log(20), np.log(300))))

    @override
    def strike(self, row: Row) -> None:
        for kind in (Kind.FC2, Kind.O_PROJ):
            row.weights[row.world.layout.columns_of(kind)] *= self.amount


class FlippedWeights(Fault):
    """Bits of sign and exponent are flipped in part of the weights, by faulty memory."""

    name = "flipped_weights"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(np.exp(generator.uniform(np.log(0.005), np.log(0.1))))

    @override
    def strike(self, row: Row) -> None:
        noise = torch.Generator().manual_seed(self.onset)
        struck = torch.rand(row.weights.shape, generator=noise) < self.amount
        row.weights[struck] *= -16


class FreshWeights(Fault):
    """All weights are fresh ones, under the old moments and schedule (a load that failed)."""

    name = "fresh_weights"

    @override
    def strike(self, row: Row) -> None:
        row.weights.copy_(row.world.initial)


class LostEmbedding(Fault):
    """Embedding and head are nothing but large noise, as after a load of other shapes."""

    name = "lost_embedding"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(generator.uniform(3, 12))

    @override
    def strike(self, row: Row) -> None:
        noise = torch.Generator().manual_seed(self.onset)
        for kind in ("embedding", Kind.HEAD):
            columns = row.world.layout.columns_of(kind)
            if not columns.numel():  # a ViT has no embedding of tokens
                continue
            own = row.weights[columns]
            drawn = torch.randn(own.shape, generator=noise)
            row.weights[columns] = self.amount * own.std() * drawn


class LostMoments(Fault):
    """Adam's second moments are lost and its count is kept: steps far too large."""

    name = "lost_moments"

    @classmethod
    @override
    def applies(cls, world: World) -> bool:
        return "exp_avg_sq" in world.optimizer.names

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(10 ** generator.uniform(-8, -5))

    @override
    def strike(self, row: Row) -> None:
        row.moments["exp_avg_sq"].mul_(self.amount)


class PoisonedMoments(LostMoments):
    """Adam's second moments are far too large, as after one enormous gradient: no step moves."""

    name = "poisoned_moments"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = 1e14


class NanGradient(Fault):
    """One gradient is NaN in one step, which reaches every weight."""

    name = "nan_gradient"

    @classmethod
    @override
    def applies(cls, world: World) -> bool:
        return world.setting.precision == "fp32"  # a scaler skips the step

    @override
    def on_gradients(self, row: Row) -> None:
        if row.member.step == self.onset and row.member.held.ill_since is not None:
            row.gradients[0] = float("nan")
            row.member.held.ill_since = None

    @override
    def strike(self, row: Row) -> None:
        row.member.held.ill_since = row.member.step


class DisturbedGradients(Fault):
    """A broken reduction of gradients, until the job is rewound (its communicator made anew)."""

    @override
    def strike(self, row: Row) -> None:
        row.member.held.ill_since = row.member.step

    @override
    def on_gradients(self, row: Row) -> None:
        if row.member.held.ill_since is not None:
            self.disturb(row)

    def disturb(self, row: Row) -> None:
        """Change the gradients."""


class GradientSign(DisturbedGradients):
    """The gradients have the wrong sign for some steps."""

    name = "gradient_sign"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(generator.integers(15, 60))

    @override
    def disturb(self, row: Row) -> None:
        if row.member.step < self.onset + self.amount:
            row.gradients.neg_()


class GradientNoise(DisturbedGradients):
    """Noise drowns the gradients."""

    name = "gradient_noise"

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(generator.uniform(8, 50))

    @override
    def disturb(self, row: Row) -> None:
        noise = torch.Generator().manual_seed(row.member.step)
        drawn = torch.randn(row.gradients.shape, generator=noise)
        row.gradients += self.amount * row.gradients.norm() * drawn / drawn.norm()


class ScalerAtFloor(DisturbedGradients):
    """Every gradient overflows fp16: no step is taken, and the scale falls to its floor."""

    name = "scaler_at_floor"

    @classmethod
    @override
    def applies(cls, world: World) -> bool:
        return world.setting.precision == "fp16"

    @override
    def disturb(self, row: Row) -> None:
        row.gradients[0] = float("inf")


class GrowingWeights(Fault):
    """Weights grow or shrink by some percent at every step, as by a wrong weight decay."""

    kinds: ClassVar[tuple[str, ...]] = ()
    low: ClassVar[float]
    high: ClassVar[float]

    @override
    def draw(self, generator: np.random.Generator) -> None:
        self.amount = float(generator.uniform(self.low, self.high))

    @override
    def strike(self, row: Row) -> None:
        row.member.held.ill_since = row.member.step

    @override
    def after_step(self, row: Row) -> None:
        if row.member.held.ill_since is None:
            return
        for kind in self.kinds:
            row.weights[row.world.layout.columns_of(kind)] *= self.amount


class LogitGrowth(GrowingWeights):
    """Queries and keys grow: attention entropy collapses, logits explode."""

    name = "attention_logit_growth"
    kinds = (Kind.Q_PROJ, Kind.K_PROJ)
    low, high = 1.03, 1.1


class OuterGrowth(GrowingWeights):
    """The outer projections grow: activations explode from the bottom up."""

    name = "outer_projection_growth"
    kinds = (Kind.O_PROJ, Kind.FC2)
    low, high = 1.03, 1.1


class Shrinking(GrowingWeights):
    """Weight decay far too strong: the loss creeps up."""

    name = "shrinking_weights"
    kinds = (Kind.V_PROJ, Kind.O_PROJ, Kind.FC1, Kind.FC2, Kind.HEAD)
    low, high = 0.95, 0.985


def spoil(batch: Batch, count: int, seed: int) -> None:
    """Turn the first samples of a batch into noise, in place."""
    noise = torch.Generator().manual_seed(seed)
    for name, values in batch.items():
        own = values[:count]
        if own.is_floating_point():
            own.copy_(torch.randn(own.shape, generator=noise))
        else:
            limit = CLASSES if name == "labels" else VOCABULARY
            own.copy_(torch.randint(limit, own.shape, generator=noise))


FAULTS: Final[tuple[type[Fault], ...]] = (
    LrJump,
    LrRestart,
    LrSchedule,
    LrCreep,
    BadData,
    BadDataForever,
    WrongTargets,
    ConstantData,
    RepeatedBatch,
    ScaledWeights,
    FlippedWeights,
    FreshWeights,
    LostEmbedding,
    LostMoments,
    PoisonedMoments,
    NanGradient,
    GradientSign,
    GradientNoise,
    ScalerAtFloor,
    LogitGrowth,
    OuterGrowth,
    Shrinking,
)

"""Training copies of a job in step: each a member with its row of weights and moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from benchmarks.lab.corpora import HELD_OUT, POOL
from benchmarks.lab.families import FAMILIES, Batch, sample_losses
from benchmarks.lab.layout import Layout
from benchmarks.lab.members import Member, Row, State
from benchmarks.lab.optimizers import OPTIMIZERS, Moments, Optimizer

Z_WEIGHT: Final = 1e-4
CLIP: Final = 1.0
SCALE_GROWTH: Final = 60
"""Steps without overflow after which the loss scaler doubles its scale."""
SCALE_FLOOR: Final = 1.0


@dataclass(frozen=True)
class Setting:
    """A job before anything is done to it."""

    family: str
    optimizer: str
    precision: str
    """`fp32`, or `fp16`: gradients pass through that format, under a loss scaler."""
    seed: int
    rate: float = 1.0
    """Multiplier on the family's learning rate."""
    steps: int = 360

    @property
    def name(self) -> str:
        """A short name for files."""
        rate = "" if self.rate == 1 else f"_rate{self.rate:g}"
        return f"{self.family}_{self.optimizer}_{self.precision}{rate}_s{self.seed}"


class World:
    """What all copies of a job share: model, data, optimizer."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.family = FAMILIES[setting.family]
        self.batch = self.family.batch
        torch.manual_seed(setting.seed)
        self.model: nn.Module = self.family.make(
            self.family.sizes[setting.seed % len(self.family.sizes)]
        )
        self.layout = Layout(self.model)
        self.optimizer: Optimizer = OPTIMIZERS[setting.optimizer](self.layout)
        self.initial = self.layout.row_of(self.model)
        self.pools = self.family.pools(setting.seed)
        self._draws = np.random.default_rng([setting.seed, 9]).random(2 * POOL)
        self._losses = _Losses(self.model)
        self.tenant: SingleRun | None = None
        """Whose row the model lives in."""
        self.gradients: Callable[..., tuple[Tensor, tuple[Tensor, tuple[Tensor, Tensor]]]] = vmap(
            grad_and_value(self._loss, has_aux=True)
        )

    def first_state(self, member: Member) -> State:
        """Return the state before the first step."""
        rows = {name: torch.zeros_like(self.initial)[None] for name in self.optimizer.names}
        return State(member, self.initial.clone(), Moments(rows, torch.zeros(1)))

    def schedule(self, step: int) -> float:
        """Return the rate of a step: a warm-up, then half a cosine down to a tenth."""
        warm = min(1.0, (step + 1) / 30)
        progress = min(1.0, max(step, 0) / self.setting.steps)
        rate = self.family.rates[self.setting.optimizer] * self.setting.rate
        return rate * warm * (0.55 + 0.45 * math.cos(math.pi * progress))

    def read(self, members: Sequence[Member]) -> tuple[Batch, np.ndarray]:
        """Return the next samples of every member, [E, B, ...], and their sources, [E, B]."""
        positions = np.array([m.position for m in members])[:, None] + np.arange(self.batch)
        shares = []
        for row, member in enumerate(members):
            at = member.position // self.batch  # the step whose samples these are
            shares.append(np.cumsum(member.change.mix(at)))
            distinct = member.change.distinct(at, self.batch)
            positions[row] = positions[row, np.arange(self.batch) % distinct]
        draws = self._draws[positions % len(self._draws)]
        sources = (draws[:, :, None] > np.array(shares)[:, None, :-1]).sum(axis=2)
        indices = torch.from_numpy(positions % (POOL - HELD_OUT // 2))
        place = torch.from_numpy(sources)
        batch = {name: field[place, indices] for name, field in self.pools.items()}
        for row, member in enumerate(members):
            own = {name: field[row] for name, field in batch.items()}
            member.change.spoil(own, member.position // self.batch, self)
        return batch, sources

    @cached_property
    def held_out(self) -> Batch:
        """Samples that no stream reads."""
        half = HELD_OUT // 2
        return {
            name: torch.cat([field[0, -half:], field[1, -half:]])
            for name, field in self.pools.items()
        }

    @torch.no_grad()
    def evaluate(self, weights: Tensor) -> list[float]:
        """Return the held-out loss of every row of weights."""
        with sdpa_kernel(SDPBackend.MATH):  # the others run one copy after the other
            losses = vmap(lambda row: self._loss(row, self.held_out)[1][0].mean())(weights)
        return [loss if math.isfinite(loss) else math.inf for loss in losses.tolist()]

    def _loss(self, row: Tensor, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        weights = {f"model.{name}": each for name, each in self.layout.views(row).items()}
        losses, z = functional_call(self._losses, weights, (batch,))
        return losses.mean() + Z_WEIGHT * z, (losses.detach(), z.detach())


class _Losses(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @override
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return sample_losses(self.model, batch)


@dataclass
class StepResult:
    """What a step of E members did."""

    losses: Tensor
    """[E, B], the loss of every sample."""
    z: Tensor
    """[E]."""
    sources: np.ndarray
    """[E, B]."""
    rates: list[float]
    scales: list[float]
    """Of the loss scaler, during the step."""
    skipped: Tensor
    """[E] bool."""


class Ensemble:
    """Members of one world that step together, wherever each of them is.

    Args:
        world: What they share.
        states: Where each of them begins; they are copied.
        compute: Gradients of the members, written into a matrix: [E, P]; by default all at once.
    """

    def __init__(self, world: World, states: Sequence[State]) -> None:
        self.world = world
        self.members = [state.member.copy() for state in states]
        self.weights = torch.stack([state.weights for state in states])
        self.moments = Moments(
            {
                name: torch.cat([state.moments.rows[name] for state in states])
                for name in world.optimizer.names
            },
            torch.cat([state.moments.counts for state in states]),
        )
        self.gradients = torch.zeros_like(self.weights)

    def step(self, on_gradients: Callable[[], None] | None = None) -> StepResult:
        """Train every member for a step.

        Args:
            on_gradients: Called when the gradients are what a job's would be before clipping.
        """
        self._strike()
        batch, sources = self.world.read(self.members)
        losses, z = self.compute(batch)
        with torch.no_grad():
            for row in self._rows():
                row.member.change.on_gradients(row)
            scales = [member.held.scale for member in self.members]
            skipped = self._scale()
            if on_gradients is not None:
                on_gradients()
            rates = [self.rate(member) for member in self.members]
            self._update(rates, skipped)
            for row in self._rows():
                row.member.step += 1
                row.member.position += self.world.batch
                row.member.change.after_step(row)
        return StepResult(losses, z, sources, rates, scales, skipped)

    def compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Fill `gradients`; return the losses of the samples, [E, B], and the z-losses, [E]."""
        with sdpa_kernel(SDPBackend.MATH):  # the others run one copy after the other
            gradients, (_, (losses, z)) = self.world.gradients(self.weights, batch)
        self.gradients = gradients
        return losses, z

    def rate(self, member: Member) -> float:
        """Return the learning rate of a member's next step."""
        held = member.held
        scheduled = self.world.schedule(member.step - held.clock)
        return scheduled * held.rate * member.change.rate(member.step) * member.cut

    def state(self, index: int = 0) -> State:
        """Return a snapshot of a member."""
        one = slice(index, index + 1)
        rows = {name: row[one].clone() for name, row in self.moments.rows.items()}
        moments = Moments(rows, self.moments.counts[one].clone())
        return State(self.members[index].copy(), self.weights[index].clone(), moments)

    @torch.no_grad()
    def load(self, state: State, index: int = 0) -> None:
        """Put a member back to a snapshot."""
        self.members[index] = state.member.copy()
        self.weights[index].copy_(state.weights)
        for name, row in self.moments.rows.items():
            row[index].copy_(state.moments.rows[name][0])
        self.moments.counts[index] = state.moments.counts[0]

    def keep(self, indices: Sequence[int]) -> None:
        """Drop the members that are not listed."""
        self.members = [self.members[index] for index in indices]
        chosen = torch.tensor(indices)
        self.weights = self.weights[chosen]
        self.gradients = torch.zeros_like(self.weights)
        rows = {name: row[chosen] for name, row in self.moments.rows.items()}
        self.moments = Moments(rows, self.moments.counts[chosen])

    def _rows(self) -> list[Row]:
        return [
            Row(
                self.world,
                member,
                self.weights[index],
                self.gradients[index],
                {name: row[index] for name, row in self.moments.rows.items()},
                self.moments.counts[index],
            )
            for index, member in enumerate(self.members)
        ]

    @torch.no_grad()
    def _strike(self) -> None:
        for row in self._rows():
            if not row.member.struck and row.member.step >= row.member.change.onset:
                row.member.struck = True
                row.member.change.strike(row)

    def _scale(self) -> Tensor:
        """Send the gradients through fp16 under their scales; return which steps are skipped."""
        if self.world.setting.precision == "fp32":
            return torch.zeros(len(self.members), dtype=torch.bool)
        scales = torch.tensor([member.held.scale for member in self.members])[:, None]
        self.gradients.copy_((self.gradients * scales).half().float() / scales)
        skipped = ~self.gradients.isfinite().all(dim=1)
        for member, overflowed in zip(self.members, skipped.tolist(), strict=True):
            held = member.held
            held.calm = 0 if overflowed else held.calm + 1
            if overflowed:
                held.scale = max(SCALE_FLOOR, held.scale / 2)
            elif held.calm >= SCALE_GROWTH:
                held.scale, held.calm = held.scale * 2, 0
        return skipped

    def _update(self, rates: list[float], skipped: Tensor) -> None:
        """Clip by the global norm and take the optimizer's step where it is not skipped."""
        gradients = torch.where(skipped[:, None], 0.0, self.gradients)
        norms = gradients.norm(dim=1, keepdim=True)
        gradients *= (CLIP / (norms + 1e-6)).clamp(max=1.0)
        before = self.moments.copy() if skipped.any() else None
        update = self.world.optimizer.update(self.weights, gradients, self.moments)
        if before is not None:
            update[skipped] = 0.0
            for name, row in self.moments.rows.items():
                row[skipped] = before.rows[name][skipped]
            self.moments.counts[skipped] = before.counts[skipped]
        self.weights -= torch.tensor(rates)[:, None] * update


class SingleRun(Ensemble):
    """One member, trained by the model's own forward and backward, as a job is."""

    def __init__(self, world: World, state: State) -> None:
        super().__init__(world, [state])

    @override
    def compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.gradients.zero_()
        if self.world.tenant is not self:
            self.world.layout.attach(self.world.model, self.weights[0], self.gradients[0])
            self.world.tenant = self
        own = {name: values[0] for name, values in batch.items()}
        losses, z = sample_losses(self.world.model, own)
        (losses.mean() + Z_WEIGHT * z).backward()
        return losses.detach()[None], z.detach()[None]

"""AdamW, SGD with momentum, Lion and Muon on rows of parameters: [E, P] for E copies of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.lab.layout import Layout

EPSILON: Final = 1e-8


@dataclass
class Moments:
    """What an optimizer remembers of E copies."""

    rows: dict[str, Tensor] = field(default_factory=dict)
    """By torch's names, [E, P] each."""
    counts: Tensor = field(default_factory=lambda: torch.zeros(0))
    """[E], the steps that its bias correction counts."""

    def copy(self) -> Moments:
        """Return a copy that shares nothing."""
        rows = {name: row.clone() for name, row in self.rows.items()}
        return Moments(rows, self.counts.clone())


class Optimizer(Protocol):
    """Turns gradients into updates."""

    names: tuple[str, ...]

    def update(self, weights: Tensor, gradients: Tensor, moments: Moments) -> Tensor:
        """Advance the moments; return the update before the rate, [E, P]."""
        ...


class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    names = ("exp_avg", "exp_avg_sq")

    def __init__(self, layout: Layout, decay: float = 0.1) -> None:
        self._decay = decay * layout.decayed
        self._betas = (0.9, 0.95)

    @override
    def update(self, weights: Tensor, gradients: Tensor, moments: Moments) -> Tensor:
        first, second = moments.rows["exp_avg"], moments.rows["exp_avg_sq"]
        moments.counts += 1
        first.lerp_(gradients, 1 - self._betas[0])
        second.mul_(self._betas[1]).addcmul_(gradients, gradients, value=1 - self._betas[1])
        corrections = [(1 - beta**moments.counts)[:, None] for beta in self._betas]
        root = (second / corrections[1]).sqrt_().add_(EPSILON)
        return (first / corrections[0]).div_(root).addcmul_(weights, self._decay)


class Sgd(Optimizer):
    """Stochastic gradient descent with momentum."""

    names = ("momentum_buffer",)

    def __init__(self, layout: Layout, decay: float = 1e-4) -> None:
        self._decay = decay * layout.decayed

    @override
    def update(self, weights: Tensor, gradients: Tensor, moments: Moments) -> Tensor:
        moments.counts += 1
        buffer = moments.rows["momentum_buffer"].mul_(0.9).add_(gradients)
        return buffer + weights * self._decay


class Lion(Optimizer):
    """The sign of an interpolated momentum (arXiv:2302.06675)."""

    names = ("exp_avg",)

    def __init__(self, layout: Layout, decay: float = 0.5) -> None:
        self._decay = decay * layout.decayed

    @override
    def update(self, weights: Tensor, gradients: Tensor, moments: Moments) -> Tensor:
        moments.counts += 1
        average = moments.rows["exp_avg"]
        update = torch.lerp(average, gradients, 0.1).sign_()
        average.lerp_(gradients, 0.01)
        return update.addcmul_(weights, self._decay)


class Muon(Optimizer):
    """Orthogonalised momentum for the matrices inside blocks, AdamW for the rest."""

    names = AdamW.names

    def __init__(self, layout: Layout, decay: float = 0.1) -> None:
        self._rest = AdamW(layout, decay)
        self._decay = decay * layout.decayed
        self._shapes: dict[torch.Size, list[slice]] = {}
        for place, shape in layout.inner:
            self._shapes.setdefault(shape, []).append(place)

    @override
    def update(self, weights: Tensor, gradients: Tensor, moments: Moments) -> Tensor:
        update = self._rest.update(weights, gradients, moments).mul_(0.3)
        first = moments.rows["exp_avg"]
        copies = len(weights)
        for shape, places in self._shapes.items():
            stacked = torch.cat([first[:, place].view(copies, *shape) for place in places])
            turned = _orthogonalised(stacked).mul_(0.2 * max(shape) ** 0.5)
            for place, matrix in zip(places, turned.split(copies), strict=True):
                decay = weights[:, place] * self._decay[place]
                update[:, place] = matrix.reshape(copies, -1).add_(decay)
        return update


def _orthogonalised(matrices: Tensor) -> Tensor:
    """Newton and Schulz's iteration of Muon, on [N, rows, columns]."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(
            x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445
        )
    return (x.transpose(1, 2) if tall else x).contiguous()


OPTIMIZERS: Final = {"adamw": AdamW, "sgd": Sgd, "lion": Lion, "muon": Muon}

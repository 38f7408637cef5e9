"""What is used today against instability, in the laboratory's harness.

All jobs clip the gradient norm at 1 already. Sources: ZClip, arXiv:2504.02507; OLMo-core's
SkipStepOptimizer; the RecoveryAction of orbit, as the TensorFlow Model Garden uses it.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.lab.families import Batch
from benchmarks.lab.members import Change, Member, State
from benchmarks.lab.oracle import is_evaluated
from benchmarks.lab.training import Ensemble, World

TICKS: Final = 3
"""Steps that a job may take in all, as a multiple of its length: restores repeat steps."""


class Peer(Protocol):
    """A protection of one job."""

    def factor(self, norm: float, loss: float) -> float:
        """Return the factor on the gradients of a step; 0 leaves the step out."""
        ...

    def restores(self, loss: float) -> bool:
        """Return whether the newest checkpoint is loaded after a step."""
        ...


class Unprotected(Peer):
    """Nothing."""

    @override
    def factor(self, norm: float, loss: float) -> float:
        return 1.0

    @override
    def restores(self, loss: float) -> bool:
        return False


class Clipping(Unprotected):
    """The norm is clipped at a quarter of what the jobs clip at."""

    @override
    def factor(self, norm: float, loss: float) -> float:
        return min(1.0, 0.25 / norm) if norm > 0 else 1.0


class ZClip(Unprotected):
    """Norms beyond 2.5 deviations of their moving mean are clipped, the farther the more."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._mean = self._variance = 0.0

    @override
    def factor(self, norm: float, loss: float) -> float:
        if not math.isfinite(norm):
            return 1.0
        if len(self._first) < 25:
            self._first.append(norm)
            self._mean = statistics.fmean(self._first)
            self._variance = statistics.pvariance(self._first)
            return 1.0
        deviation = math.sqrt(self._variance) + 1e-6
        z = (norm - self._mean) / deviation
        clipped = norm if z <= 2.5 else self._mean + 2.5 * deviation * 2.5 / z
        self._mean = 0.97 * self._mean + 0.03 * clipped
        self._variance = 0.97 * self._variance + 0.03 * (clipped - self._mean) ** 2
        return clipped / norm if norm > 0 else 1.0


class SkipStep(Unprotected):
    """A step whose loss or norm is 6 deviations above the last 128 is left out, from 64 on."""

    def __init__(self) -> None:
        self._windows: tuple[deque[float], deque[float]] = (deque(maxlen=128), deque(maxlen=128))

    @override
    def factor(self, norm: float, loss: float) -> float:
        skipped = False
        for window, value in zip(self._windows, (norm, loss), strict=True):
            if len(window) >= 64:
                skipped |= bool(value > np.mean(window) + 6 * np.std(window))  # NaN: as there
            window.append(value)
        return 0.0 if skipped else 1.0


class RestoreOnBound(Unprotected):
    """A loss beyond a bound, or NaN, loads the newest checkpoint, five times at most.

    The bound is what a user can know: the loss of a model that has learnt nothing.
    """

    def __init__(self) -> None:
        self._first: list[float] = []
        self._trials = 0

    @override
    def restores(self, loss: float) -> bool:
        if len(self._first) < 5:
            self._first.append(loss)
            return False
        is_lost = not loss <= 1.1 * statistics.fmean(self._first)
        self._trials += is_lost
        return is_lost and self._trials <= 5


PEERS: Final[dict[str, type[Unprotected]]] = {
    "unprotected": Unprotected,
    "clipping": Clipping,
    "zclip": ZClip,
    "skip_step": SkipStep,
    "restore_on_bound": RestoreOnBound,
}
CHECKPOINT_EVERY: Final = 50


class GuardedRuns(Ensemble):
    """Copies of a job, each under its own protection, in step."""

    def __init__(self, world: World, guarded: Sequence[tuple[Change, Peer]]) -> None:
        super().__init__(world, [world.first_state(Member(change)) for change, _ in guarded])
        self._peers = [peer for _, peer in guarded]
        self._losses: list[float] = []

    def run(self) -> list[dict[int, float]]:
        """Train to the end; return the held-out losses of each by step."""
        end = self.world.setting.steps
        curves: list[dict[int, float]] = [{} for _ in self._peers]
        checkpoints = [self.state(index) for index in range(len(self._peers))]
        owners = list(range(len(self._peers)))
        for _ in range(TICKS * end):
            self.step()
            due = [i for i, m in enumerate(self.members) if is_evaluated(m.step, end)]
            losses = self.world.evaluate(self.weights[due]) if due else []
            for index, loss in zip(due, losses, strict=True):
                curves[owners[index]][self.members[index].step] = loss
            for index, peer in enumerate(self._peers):
                self._checkpoint(index, peer, checkpoints)
            going = [i for i, member in enumerate(self.members) if member.step < end]
            if not going:
                break
            if len(going) < len(owners):
                self.keep(going)
                owners, self._peers, checkpoints = (
                    [each[index] for index in going] for each in (owners, self._peers, checkpoints)
                )
        return curves

    def _checkpoint(self, index: int, peer: Peer, checkpoints: list[State]) -> None:
        if peer.restores(self._losses[index]):
            position = self.members[index].position  # the loader is not rewound
            self.load(checkpoints[index], index)
            self.members[index].struck = True
            self.members[index].position = position
        elif self.members[index].step % CHECKPOINT_EVERY == 0:
            checkpoints[index] = self.state(index)

    @override
    def compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        losses, z = super().compute(batch)
        self._losses = losses.mean(dim=1).tolist()
        return losses, z

    @override
    def _update(self, rates: list[float], skipped: Tensor) -> None:
        norms = self.gradients.norm(dim=1).tolist()
        factors = torch.tensor(
            [
                peer.factor(norm, loss)
                for peer, norm, loss in zip(self._peers, norms, self._losses, strict=True)
            ]
        )
        self.gradients *= torch.where(factors == 0, 1.0, factors)[:, None]
        super()._update(rates, skipped | (factors == 0))

"""A copy of a job: where it is, what holds for it, and the changes that happen to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np
from torch import Tensor

from benchmarks.lab.families import Batch
from benchmarks.lab.optimizers import Moments

if TYPE_CHECKING:
    from benchmarks.lab.training import World

MIX: Final = (0.6, 0.4, 0.0)
"""Shares of the sources."""
FIRST_SCALE: Final = 2.0**18


@dataclass
class Held:
    """State beside tensors that a snapshot holds and a rollback restores."""

    rate: float = 1.0
    """Multiplier on the schedule."""
    clock: int = 0
    """The step at which the schedule began."""
    ill_since: int | None = None
    """The step from which on a change disturbs every step; None if none does."""
    scale: float = FIRST_SCALE
    calm: int = 0
    """Steps since the loss scaler last changed its scale."""


class Change:
    """Something that happens to a job after `onset` completed steps.

    What it changes is either state of the job, which a rollback restores, or the job's environment
    (its data by position, its schedule by step), which a rollback meets again. It strikes once, not
    again after a rollback.
    """

    name: ClassVar[str] = "nothing"
    kind: ClassVar[Literal["fault", "lookalike", "healthy"]] = "healthy"
    environment: ClassVar[bool] = False
    """Whether a rollback meets it again."""
    marker: ClassVar[str | None] = None
    """The marker that the job sends at the onset."""

    def __init__(self, onset: int, generator: np.random.Generator) -> None:
        self.onset = onset
        self.amount = 1.0
        self.draw(generator)

    def draw(self, generator: np.random.Generator) -> None:
        """Choose how strong it is."""

    @classmethod
    def applies(cls, world: World) -> bool:
        """Return whether a job has what is changed."""
        del world
        return True

    def strike(self, row: Row) -> None:
        """Change the state, between two steps."""

    def on_gradients(self, row: Row) -> None:
        """Change the gradients of a step, before anything reads them."""

    def after_step(self, row: Row) -> None:
        """Change the state after a step."""

    def rate(self, step: int) -> float:
        """Return the multiplier on the schedule at a step."""
        del step
        return 1.0

    def mix(self, step: int) -> tuple[float, ...]:
        """Return the shares of the sources at a step's worth of the stream."""
        del step
        return MIX

    def distinct(self, step: int, batch: int) -> int:
        """Return how many of a batch's samples are different ones."""
        del step
        return batch

    def spoil(self, batch: Batch, step: int, world: World) -> None:
        """Change the samples of a step's worth of the stream, in place."""


@dataclass
class Member:
    """A copy of a job.

    Args:
        change: What happens to it.
        step: Completed optimizer steps.
        position: Samples of the stream that were read or skipped.
        struck: Whether the change has struck.
        cut: Our multiplier on the rate.
        held: State that a snapshot holds.
    """

    change: Change
    step: int = 0
    position: int = 0
    struck: bool = False
    cut: float = 1.0
    held: Held = field(default_factory=Held)

    def copy(self) -> Member:
        """Return a copy that shares only the change."""
        return replace(self, held=replace(self.held))


@dataclass
class Row:
    """A member with its row of the tensors: views, to be changed in place."""

    world: World
    member: Member
    weights: Tensor
    gradients: Tensor
    moments: dict[str, Tensor]
    counts: Tensor
    """Shape []."""


@dataclass
class State:
    """A snapshot of a member."""

    member: Member
    weights: Tensor
    """[P]."""
    moments: Moments
    """Of one copy: rows [1, P]."""

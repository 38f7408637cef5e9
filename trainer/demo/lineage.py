"""The loss curve that a run lived: what was abandoned by a rollback is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stabilizer.protocol.queries import SeriesData
from stabilizer.protocol.runs import Attempt


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A loss curve with its abandoned branches."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    abandoned: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...] = ()
    """Branches left by a rollback, each as steps and losses."""

    def final(self, num_steps: int) -> float:
        """Mean of the last losses; NaN or Inf among them makes it so. NaN without any loss."""
        tail = self.losses[-num_steps:]
        return math.fsum(tail) / len(tail) if tail and all(map(math.isfinite, tail)) else math.nan


def follow(attempts: Sequence[Attempt], data: Sequence[SeriesData]) -> Curve:
    """Put the attempts of one series together.

    An attempt that starts at step s goes on after sample s of the lineage before it; everything
    behind s is its abandoned branch.
    """
    by_attempt: Mapping[int, SeriesData] = {part.attempt: part for part in data}
    steps: list[int] = []
    losses: list[float] = []
    abandoned: list[tuple[tuple[int, ...], tuple[float, ...]]] = []
    for attempt in sorted(attempts, key=lambda one: one.number):
        kept = sum(step <= attempt.from_step for step in steps)
        if steps[kept:]:
            abandoned.append((tuple(steps[kept:]), tuple(losses[kept:])))
        del steps[kept:], losses[kept:]
        part = by_attempt.get(attempt.number)
        if part is not None:
            steps.extend(part.steps)
            losses.extend(part.values)
    return Curve(steps=tuple(steps), losses=tuple(losses), abandoned=tuple(abandoned))

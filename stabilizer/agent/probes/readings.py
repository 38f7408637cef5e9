"""How each metric follows from the numbers that were copied from the device.

Microbatches of a step are put together here: means are averaged, root mean squares are taken over
all values, a maximum stays the maximum. NaN goes through all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabilizer.agent.probes.vector import Float64Array, Slot


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean of what was given for a series: parts of one number, and numbers of the host."""

    slot: Slot
    parts: Sequence[int] = ()
    numbers: Sequence[float] = ()

    def read(self, parts: Sequence[Float64Array]) -> list[tuple[Slot, float]]:
        """Return the mean."""
        values = [*self.numbers, *(float(parts[index][0]) for index in self.parts)]
        return [(self.slot, sum(values) / len(values))] if values else []


@dataclass(frozen=True, slots=True)
class RootMeanSquare:
    """From L2 norms and the numbers of elements they were taken over."""

    slot: Slot
    parts: Sequence[int]
    elements: Sequence[int]

    def read(self, parts: Sequence[Float64Array]) -> list[tuple[Slot, float]]:
        """Return sqrt(mean(x^2)) over all elements of all microbatches."""
        norms = [float(parts[index][0]) for index in self.parts]
        squares = sum(norm * norm for norm in norms)
        return [(self.slot, math.sqrt(squares / sum(self.elements)))]


@dataclass(frozen=True, slots=True)
class GradientNorms:
    """From the norm of every parameter's gradient.

    Args:
        part: The part with one norm per parameter.
        whole: Slot of the global norm.
        nonfinite: Slot of the number of gradients with NaN or Inf.
        groups: For each module its slot and the positions of its parameters in the part.
        scale: A loss scaler's factor, which the gradients still carry: a number, or ...
        scale_part: ... the part that holds it.
    """

    part: int
    whole: Slot
    nonfinite: Slot
    groups: Sequence[tuple[Slot, Sequence[int]]] = ()
    scale: float = 1.0
    scale_part: int | None = None

    def read(self, parts: Sequence[Float64Array]) -> list[tuple[Slot, float]]:
        """Return the global norm, the number of broken gradients, and the modules' norms."""
        raw = parts[self.part]
        scale = self.scale if self.scale_part is None else float(parts[self.scale_part][0])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # NaN and Inf are data
            norms = raw / np.float64(scale)
            squares = norms * norms
        values = [
            (self.whole, math.sqrt(squares.sum())),
            (self.nonfinite, float(np.count_nonzero(~np.isfinite(raw)))),
        ]
        plain = squares.tolist()
        for slot, positions in self.groups:
            values.append((slot, math.sqrt(sum(plain[position] for position in positions))))
        return values


@dataclass(frozen=True, slots=True)
class AttentionSummaries:
    """From the sums of `attention.summarize`, one part for each microbatch."""

    entropy_min: Slot
    entropy_mean: Slot
    logit_max: Slot
    parts: Sequence[int]

    def read(self, parts: Sequence[Float64Array]) -> list[tuple[Slot, float]]:
        """Return the worst head's and the mean entropy, and the largest logit.

        Without a query that sees two keys there is no entropy, without a visible key no logit.
        """
        summaries = [parts[index] for index in self.parts]
        heads = (len(summaries[0]) - 2) // 2
        total = np.sum([summary[: 2 * heads] for summary in summaries], axis=0)
        sums, counts = total[:heads], total[heads:]
        values = []
        if counts.any():
            entropies = sums[counts > 0] / counts[counts > 0]
            values.append((self.entropy_min, float(entropies.min())))
            values.append((self.entropy_mean, float(entropies.mean())))
        logits = [float(summary[-2]) for summary in summaries if summary[-1] > 0]
        if logits:
            values.append((self.logit_max, float(np.max(logits))))
        return values

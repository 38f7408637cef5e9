"""Which part of each attempt lies on the way to the newest one, and which a rollback has left.

An attempt that begins at step s goes on behind sample s of its parent; what the parent has behind s
is an abandoned branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stabilizer.protocol.runs import Attempt

_NOTHING: Final = -1


@dataclass(frozen=True, slots=True)
class Branch:
    """An attempt with the end of its live part."""

    attempt: int
    from_step: int
    live_to: int | None
    """Last step that is live; None: all of it, the attempt is under way. Below `from_step` where
    nothing of its own is live."""

    def is_live(self, step: int) -> bool:
        """Whether a sample of this attempt at this step lies on the way to the newest attempt."""
        return self.live_to is None or step <= self.live_to


def trace_lineage(attempts: Sequence[Attempt]) -> tuple[Branch, ...]:
    """Follow the newest attempt back to the first, from parent to parent.

    An attempt without a known parent before it goes on from the attempt of the next lower number:
    a job that was started anew does not know how its predecessor was counted.

    Args:
        attempts: Of one run, in any order.

    Returns:
        One branch for each attempt, numbers ascending. Live parts of successive attempts do not
        overlap, except for a sample that an attempt has at the very step it begins at.
    """
    by_number = {attempt.number: attempt for attempt in attempts}
    numbers = sorted(by_number)
    ends: dict[int, int | None] = {}
    end: int | None = None
    at = numbers[-1] if numbers else None
    while at is not None:
        attempt = by_number[at]
        ends[at] = end
        end = attempt.from_step if end is None else min(end, attempt.from_step)
        at = _parent(attempt, numbers)
    return tuple(
        Branch(number, by_number[number].from_step, ends.get(number, _NOTHING))
        for number in numbers
    )


def _parent(attempt: Attempt, numbers: Sequence[int]) -> int | None:
    before = [number for number in numbers if number < attempt.number]
    if attempt.parent in before:
        return attempt.parent
    return before[-1] if before else None

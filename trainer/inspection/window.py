"""A window of a run, by step or by sample."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from stabilizer.errors import ConfigurationError

Unit: TypeAlias = Literal["step", "sample"]
UNITS: Final[tuple[Unit, ...]] = ("step", "sample")
_WINDOW: Final = re.compile(r"(\d{1,15}):(\d{1,15})")
MAX_SAMPLES: Final = 100_000  # more than any person will judge


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` to before `end`."""

    start: int
    """First step (from 1) or sample (from 0)."""
    end: int
    """The one behind the last."""
    unit: Unit
    """What is counted."""

    def __str__(self) -> str:
        return f"{self.unit}s {self.start} to {self.end - 1}"

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.start <= number < self.end

    def samples(self, per_step: int) -> range:
        """Return the positions of a run that skipped nothing and was never rewound.

        Args:
            per_step: Samples of one optimizer step over all ranks.
        """
        if self.unit == "sample":
            return range(self.start, self.end)
        return range((self.start - 1) * per_step, (self.end - 1) * per_step)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A document that a run read, or would read."""

    sample_id: str
    """Which document."""
    source: str
    """Where it is from."""
    position: int
    """Of its sequence in the stream."""
    step: int | None = None
    """For which step it was read; None: the ledger does not know of it."""
    attempt: int | None = None
    """In which attempt."""
    loss: float | None = None
    """Its mean loss at that step, where it was recorded."""


def parse_window(text: str, unit: str) -> Window:
    """Read FROM:TO, without the end.

    Args:
        text: As a person types it.
        unit: step or sample.

    Raises:
        ConfigurationError: It is something else, empty or absurdly long.
    """
    match = _WINDOW.fullmatch(text.strip())
    if unit not in UNITS:
        raise ConfigurationError(f"--by: {unit!r} cannot be used; allowed: {', '.join(UNITS)}")
    first = 1 if unit == "step" else 0
    if match is None or not first <= int(match[1]) < int(match[2]):
        raise ConfigurationError(
            f"--window: {text!r} cannot be used; allowed: FROM:TO, FROM at least {first} and below "
            "TO, which is not part of it"
        )
    window = Window(int(match[1]), int(match[2]), "step" if unit == "step" else "sample")
    if window.end - window.start > MAX_SAMPLES:
        raise ConfigurationError(
            f"--window: {text!r} cannot be used; allowed: at most {MAX_SAMPLES} {unit}s"
        )
    return window

"""Checks that configuration classes make in `__post_init__`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from stabilizer.errors import ConfigurationError

_mistakes: ContextVar[list[str] | None] = ContextVar("_mistakes", default=None)


@contextmanager
def collect_mistakes() -> Iterator[list[str]]:
    """Let every check of the block speak, not only the first that fails.

    While this is in force a check notes what it refuses and lets the class be made, so that a
    person reads all mistakes at once; whoever collects must not use what was made if there are any.
    """
    found: list[str] = []
    token = _mistakes.set(found)
    try:
        yield found
    finally:
        _mistakes.reset(token)


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Refuse a value.

    Args:
        condition: Whether the value can be used.
        name: Dotted name of the field, as in `--set`.
        value: What was given.
        allowed: What may be given, in words.

    Raises:
        ConfigurationError: The condition does not hold, and mistakes are not collected.
    """
    if condition:
        return
    message = f"{name}: {value!r} cannot be used; allowed: {allowed}"
    found = _mistakes.get()
    if found is None:
        raise ConfigurationError(message)
    found.append(message)


def require_count(name: str, value: int, *, at_least: int = 1) -> None:
    """Refuse a number of things below `at_least`.

    Raises:
        ConfigurationError: It is.
    """
    require(value >= at_least, name, value, f"a whole number of at least {at_least}")


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high], NaN included.

    Raises:
        ConfigurationError: It is.
    """
    require(low <= value <= high, name, value, f"a number from {low:g} to {high:g}")


def require_positive(name: str, value: float) -> None:
    """Refuse a number that is not above 0 and finite.

    Raises:
        ConfigurationError: It is not.
    """
    require(value > 0 and math.isfinite(value), name, value, "a finite number above 0")

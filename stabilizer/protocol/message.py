"""What all messages share: their base class, the protocol version, and how errors travel."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, JsonValue

PROTOCOL_VERSION: Final = 2
"""Raised when a message changes its meaning; a new optional field does not raise it.

Version 1: the job numbers its attempts. Version 2: it mints their ids, the collector numbers them.
"""

MIN_PROTOCOL_VERSION: Final = 1
"""The oldest version that this collector still accepts."""

PROBLEM_CONTENT_TYPE: Final = "application/problem+json"


class Message(BaseModel):
    """Base of everything that travels between job, collector and dashboard.

    Messages are immutable and reject unknown fields. Field docstrings become the descriptions of
    the API. NaN and Infinity are written as strings, since JSON has no numbers for them.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="strings",
        use_attribute_docstrings=True,
    )


class FieldProblem(Message):
    """One field that cannot be used."""

    field: str
    """Dotted name of the field."""
    value: JsonValue = None
    """The value that was given; long ones are shortened."""
    allowed: str
    """What the field accepts."""
    line: int | None = None
    """Line of the rule file, from 1; null for everything else."""


class Problem(Message):
    """An error as an RFC 9457 problem document; some codes have further members."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    """Always `about:blank`: `code` identifies the problem."""
    title: str
    """The phrase of the HTTP status."""
    status: int
    """The HTTP status."""
    code: str
    """Stable, machine-readable identifier of the problem."""
    detail: str
    """Explanation for the reader; its wording may change."""
    errors: tuple[FieldProblem, ...] = ()
    """Every field that cannot be used."""

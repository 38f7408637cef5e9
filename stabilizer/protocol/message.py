"""Base class of all messages, protocol version, and problem documents."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, JsonValue

PROTOCOL_VERSION: Final = 2
"""Increased when a message changes its meaning, not for a new optional field.

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
    """An invalid field."""

    field: str
    """Dotted name of the field."""
    value: JsonValue = None
    """The given value; long ones are cut."""
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
    """All invalid fields."""

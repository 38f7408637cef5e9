"""Refusals that only HTTP knows, and how any refusal is written down."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import Response
from starlette.exceptions import HTTPException

from stabilizer.protocol.message import PROBLEM_CONTENT_TYPE, FieldProblem, Problem

MAX_VALUE_CHARACTERS: Final = 200
"""A refused value is shown up to here: a body of megabytes must not come back as an error."""

MAX_FIELDS: Final = 100
"""Field problems in one document; the detail tells how many there are."""

_ENUM_MEMBER: Final = re.compile(r"<\w+\.\w+: ('[^']*')>")


class HttpProblem(HTTPException):
    """A refusal for reasons of HTTP itself, before any service has seen the request."""

    def __init__(
        self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, detail, headers)
        self.code = code


def problem_response(
    status: int,
    code: str,
    detail: str,
    *,
    errors: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, object] | None = None,
) -> Response:
    """Build an RFC 9457 answer; `extra` are members beyond the standard ones."""
    members: dict[str, Any] = dict(extra or {})
    problem = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        errors=tuple(errors[:MAX_FIELDS]),
        **members,
    )
    return Response(
        problem.model_dump_json(),
        status,
        dict(headers or {}),
        media_type=PROBLEM_CONTENT_TYPE,
    )


def describe_value(value: object) -> str | int | float | bool | None:
    """Make a refused value fit to be shown: numbers and short text as they are, else its text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    if isinstance(value, float) and abs(value) < float("inf"):
        return value
    text = value if isinstance(value, str) else _short_repr(value)
    if len(text) <= MAX_VALUE_CHARACTERS:
        return text
    return f"{text[:MAX_VALUE_CHARACTERS]}... ({len(text)} characters)"


def _short_repr(value: object) -> str:
    if isinstance(value, (Mapping, list, tuple, set, frozenset, bytes)) and len(value) > 8:
        return f"{type(value).__name__} of {len(value)} elements"
    return repr(value)


def field_name(location: Iterable[int | str]) -> str:
    """Write pydantic's location as a dotted name, without the part of the request it is in."""
    parts = [str(part) for part in location]
    if parts and parts[0] in ("body", "query", "path", "header"):
        parts = parts[1:] or parts[:1]
    return ".".join(parts) or "body"


def field_problems(errors: Iterable[Mapping[str, Any]]) -> list[FieldProblem]:
    """Turn pydantic's list of errors into ours; all of them, in its order."""
    return [
        FieldProblem(
            field=field_name(error["loc"]),
            value=describe_value(error.get("input")),
            allowed=_in_words(str(error["msg"])),
        )
        for error in errors
    ]


def _in_words(message: str) -> str:
    """Take the names of Python's classes out of pydantic's text."""
    return _ENUM_MEMBER.sub(r"\1", message.removeprefix("Value error, "))

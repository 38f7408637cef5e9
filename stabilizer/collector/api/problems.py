"""Problem documents (RFC 9457), and refusals that concern HTTP only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import Response
from starlette.exceptions import HTTPException

from stabilizer.protocol.message import PROBLEM_CONTENT_TYPE, FieldProblem, Problem

MAX_VALUE_CHARACTERS: Final = 200
"""Longer values are cut: an error must not return a body of megabytes."""

MAX_FIELDS: Final = 100
"""Field problems in one document; `detail` has their total number."""

_ENUM_MEMBER: Final = re.compile(r"<\w+\.\w+: ('[^']*')>")


class HttpProblem(HTTPException):
    """A refusal for a reason of HTTP, before any service sees the request."""

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
    """Build an RFC 9457 response; `extra` holds members beyond the standard ones."""
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
    """Return a refused value for display: numbers and short text unchanged, else cut text."""
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
    """Return pydantic's location as a dotted name, without the part of the request."""
    parts = [str(part) for part in location]
    if parts and parts[0] in ("body", "query", "path", "header"):
        parts = parts[1:] or parts[:1]
    return ".".join(parts) or "body"


def field_problems(errors: Iterable[Mapping[str, Any]]) -> list[FieldProblem]:
    """Convert pydantic's errors, in their order."""
    return [
        FieldProblem(
            field=field_name(error["loc"]),
            value=describe_value(error.get("input")),
            allowed=_without_class_names(str(error["msg"])),
        )
        for error in errors
    ]


def _without_class_names(message: str) -> str:
    """Remove the names of Python classes from pydantic's text."""
    return _ENUM_MEMBER.sub(r"\1", message.removeprefix("Value error, "))

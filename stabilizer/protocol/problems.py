"""Errors as they travel: RFC 9457 problem documents."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, JsonValue

PROBLEM_CONTENT_TYPE: Final = "application/problem+json"


class FieldProblem(BaseModel):
    """One field that cannot be used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str
    value: JsonValue = None
    allowed: str
    line: int | None = None


class Problem(BaseModel):
    """A refusal. `code` is stable; `detail` is for people."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    errors: tuple[FieldProblem, ...] = ()

"""Map errors to HTTP statuses and problem documents."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from stabilizer.collector.api.problems import (
    HttpProblem,
    describe_value,
    field_problems,
    problem_response,
)
from stabilizer.errors import (
    AuthenticationError,
    ConfigurationError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    ProtocolVersionError,
    RuleDefinitionError,
    RuleFileError,
    StabilizerError,
    StorageError,
)
from stabilizer.protocol.message import MIN_PROTOCOL_VERSION, PROTOCOL_VERSION, FieldProblem

logger = logging.getLogger(__name__)

STATUSES: Final[dict[type[StabilizerError], int]] = {
    InvalidInputError: 422,
    ConfigurationError: 422,
    ProtocolVersionError: 426,
    AuthenticationError: 401,
    NotFoundError: 404,
    ConflictError: 409,
    StorageError: 503,
}
"""Status by class; the nearest base class of an error counts. Any other error is a bug: 500."""

HEADERS: Final[dict[type[StabilizerError], dict[str, str]]] = {
    AuthenticationError: {"WWW-Authenticate": "Bearer"},
    StorageError: {"Retry-After": "1"},
    ProtocolVersionError: {"Upgrade": f"stabilizer/{PROTOCOL_VERSION}"},  # RFC 9110, 15.5.22
}

_ROUTER_REFUSALS: Final = {
    404: ("path_not_found", "there is nothing at this path; see /docs for all paths"),
    405: ("method_not_allowed", "this path does not allow the method; see /docs for all paths"),
}
_INTERNAL_DETAIL: Final = "the collector failed on this request; see its log"


def status_of(error: StabilizerError) -> int:
    """Return the HTTP status of an error."""
    return next((STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES), 500)


def error_response(error: StabilizerError) -> Response:
    """Build the problem document of one of our errors."""
    status = status_of(error)
    if status == 500:
        logger.error("unexpected %s: %s", type(error).__name__, error.message, exc_info=error)
        return problem_response(500, StabilizerError.code, _INTERNAL_DETAIL)
    if status == 503:
        logger.warning("%s: %s", error.code, error.message)
    headers = next((HEADERS[cls] for cls in type(error).__mro__ if cls in HEADERS), None)
    return problem_response(
        status,
        error.code,
        error.message,
        errors=_fields_of(error),
        headers=headers,
        extra=_members_of(error),
    )


def _fields_of(error: StabilizerError) -> list[FieldProblem]:
    if isinstance(error, RuleDefinitionError):
        return [FieldProblem(field=error.field, allowed=error.reason, line=error.line)]
    if isinstance(error, InvalidInputError):
        allowed = error.allowed or error.message
        value = describe_value(error.value)
        return [FieldProblem(field=error.field, value=value, allowed=allowed)]
    return []


def _members_of(error: StabilizerError) -> dict[str, object]:
    if isinstance(error, ProtocolVersionError):
        return {
            "protocol_version": PROTOCOL_VERSION,
            "min_protocol_version": MIN_PROTOCOL_VERSION,
        }
    return {}


def validation_response(error: RequestValidationError) -> Response:
    """List all invalid fields; 400 if the body is not JSON."""
    found = list(error.errors())
    if any(item["type"] == "json_invalid" for item in found):
        context = found[0].get("ctx", {})
        return problem_response(
            400, "malformed_json", f"the body is not JSON: {context.get('error', 'unreadable')}"
        )
    fields = field_problems(found)
    names = ", ".join(field.field for field in fields[:5])
    more = f" and {len(fields) - 5} more" if len(fields) > 5 else ""
    detail = f"{len(fields)} invalid field(s): {names}{more}"
    return problem_response(422, InvalidInputError.code, detail, errors=fields)


def rule_file_response(error: RuleFileError) -> Response:
    """List all errors of a rule file with their lines."""
    leaves = _leaves(error)
    fields = [field for leaf in leaves for field in _fields_of(leaf)]
    detail = "\n".join(str(leaf) for leaf in leaves)
    return problem_response(422, RuleDefinitionError.code, detail, errors=fields)


def _leaves(group: ExceptionGroup[RuleDefinitionError]) -> list[RuleDefinitionError]:
    found: list[RuleDefinitionError] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, ExceptionGroup) else [error])
    return found


def http_response(error: HTTPException) -> Response:
    """Build the problem document of a refusal by the router or this package."""
    if isinstance(error, HttpProblem):
        code, detail = error.code, error.detail
    else:
        code, detail = _ROUTER_REFUSALS.get(error.status_code, ("http_error", error.detail))
    return problem_response(error.status_code, code, str(detail), headers=error.headers)


def internal_response(error: Exception) -> Response:
    """Log an unexpected error and answer without its details."""
    logger.error("unexpected %s", type(error).__name__, exc_info=error)
    return problem_response(500, StabilizerError.code, _INTERNAL_DETAIL)


def add_error_handlers(app: FastAPI) -> None:
    """Make an app answer every error with a problem document."""

    def add(cls: type[Exception], respond: Callable[..., Response]) -> None:
        async def handle(_request: Request, error: Exception) -> Response:
            return respond(error)

        app.add_exception_handler(cls, handle)

    add(StabilizerError, error_response)
    add(RuleFileError, rule_file_response)
    add(RequestValidationError, validation_response)
    add(HTTPException, http_response)
    add(Exception, internal_response)

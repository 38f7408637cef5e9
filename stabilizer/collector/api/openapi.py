"""The OpenAPI document and the page /docs, which loads nothing from other hosts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import fastapi_offline
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stabilizer.collector.api.access import DOCS_FILES, OPEN_PATHS
from stabilizer.collector.api.bodies import JSON
from stabilizer.protocol.batches import JsonBatch
from stabilizer.protocol.message import PROBLEM_CONTENT_TYPE, Problem
from stabilizer.protocol.runs import CatalogsAdd, RunRegister
from stabilizer.protocol.views import ChangeEvent, HelloEvent

PREFIX: Final = "/api/v1"
"""Prefix of every router, so that a route knows its whole template."""

_STATIC: Final = Path(fastapi_offline.__file__).parent / "static"
"""Swagger UI from the package fastapi-offline; FastAPI's own page loads it from a CDN."""

TAGS: Final[list[dict[str, Any]]] = [
    {"name": "runs", "description": "Training jobs: register, list, change, delete."},
    {"name": "telemetry", "description": "Reports of jobs: catalogs, frames, heartbeats."},
    {"name": "series", "description": "Measured values."},
    {"name": "incidents", "description": "Alerts, incidents and the audit log."},
    {"name": "rules", "description": "Rule files: shown, changed while jobs run, restored."},
    {"name": "commands", "description": "Instructions to jobs, from the policy or a user."},
    {"name": "control", "description": "The global switch of the policy, and silences."},
    {"name": "events", "description": "Live notifications of changes, for pages."},
    {"name": "health", "description": "Probes and metrics; no token needed."},
]

DESCRIPTION: Final = """
Watches training jobs, decides, and sends them commands.

Every error is an `application/problem+json` document with a stable `code`; `errors` lists all
invalid fields. A request that changes something may name its author in `X-Stabilizer-Actor`.
NaN and infinite values are the strings `"NaN"`, `"Infinity"`, `"-Infinity"`.
"""

_ALWAYS: Final = (401, 403, 421, 422, 500, 503)
_EXPLANATIONS: Final = {
    400: "The body is not JSON, or is incomplete.",
    401: "The token is missing or unknown.",
    403: "A page of another site made the request.",
    404: "The requested object does not exist.",
    409: "The current state does not allow it; `code` names the reason.",
    413: "The body is too large.",
    415: "The content type of the body is not supported.",
    421: "The Host header is not a name of this collector.",
    422: "Fields are invalid; `errors` lists all of them.",
    426: "The collector does not support the protocol version of the job.",
    500: "The collector failed; see its log.",
    503: "The database does not respond; retry after `Retry-After` seconds.",
}
_OWN_BODIES: Final[tuple[type[BaseModel], ...]] = (
    RunRegister,
    CatalogsAdd,
    JsonBatch,
    Problem,
    HelloEvent,
    ChangeEvent,
)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document the errors of an endpoint, in addition to those of every endpoint."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": _EXPLANATIONS.get(status, HTTPStatus(status).phrase),
            "content": {PROBLEM_CONTENT_TYPE: {"schema": schema}},
        }
        for status in sorted({*statuses, *_ALWAYS})
    }


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Document a body that an endpoint parses itself, in a worker thread."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}


def operation_id(route: APIRoute) -> str:
    """Name an operation after its function: stable, and readable in generated clients."""
    return route.name


def describe(app: FastAPI) -> dict[str, Any]:
    """Build the OpenAPI document of an app."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION,
        routes=app.routes,
        tags=TAGS,
    )
    _, definitions = models_json_schema(
        [(model, "validation") for model in _OWN_BODIES],
        ref_template="#/components/schemas/{model}",
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name, schema in definitions.get("$defs", {}).items():
        schemas.setdefault(name, schema)
    if "JsonValue" in schemas:
        schemas["JsonValue"] = {"description": "Any JSON value."}
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"bearer": []}] if app.state.settings.tokens else [{"bearer": []}, {}]
    for path in OPEN_PATHS & set(document["paths"]):
        for operation in document["paths"][path].values():
            operation["security"] = []
    return document


def add_docs_page(app: FastAPI) -> None:
    """Serve Swagger UI at /docs with its files."""
    script, style, icon = (f"/docs/{name}" for name in DOCS_FILES)
    page = get_swagger_ui_html(
        openapi_url=app.openapi_url or "",
        title=app.title,
        swagger_js_url=script,
        swagger_css_url=style,
        swagger_favicon_url=icon,
        swagger_ui_parameters={"validatorUrl": None},  # asks a public server otherwise
    )
    app.add_route("/docs", _answer(lambda: page), include_in_schema=False)
    for name in DOCS_FILES:
        file = partial(FileResponse, _STATIC / name, headers={"Cache-Control": "max-age=3600"})
        app.add_route(f"/docs/{name}", _answer(file), include_in_schema=False)


def _answer(build: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_request: Request) -> Response:
        return build()

    return answer

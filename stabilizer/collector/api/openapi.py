"""The description of the API: tags, problem answers, the bodies that endpoints read themselves."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stabilizer.collector.api.access import OPEN_PATHS
from stabilizer.collector.api.bodies import JSON
from stabilizer.protocol.batches import JsonBatch
from stabilizer.protocol.message import PROBLEM_CONTENT_TYPE, Problem
from stabilizer.protocol.runs import CatalogsAdd, RunRegister
from stabilizer.protocol.views import ChangeEvent, HelloEvent

PREFIX: Final = "/api/v1"
"""Stands in every router itself, so that a route knows its whole template."""

TAGS: Final[list[dict[str, Any]]] = [
    {"name": "runs", "description": "Training jobs: register, look up, change, remove."},
    {"name": "telemetry", "description": "What jobs report: catalogs, frames, signs of life."},
    {"name": "series", "description": "What was measured."},
    {"name": "incidents", "description": "Alerts, incidents, rules and the audit log."},
    {"name": "commands", "description": "Instructions to jobs, by the policy or by hand."},
    {"name": "control", "description": "The switch over all runs, and silences."},
    {"name": "events", "description": "Changes as they happen, for pages that are open."},
    {"name": "health", "description": "For probes and scrapers; open without a token."},
]

DESCRIPTION: Final = """
Watches training jobs, decides, and tells them what to do.

Every refusal is an `application/problem+json` document with a stable `code` and, where fields
cannot be used, all of them in `errors`. A request that changes something may name its person in
`X-Stabilizer-Actor`. NaN and infinite values are the strings `"NaN"`, `"Infinity"`, `"-Infinity"`.
"""

_ALWAYS: Final = (401, 403, 421, 422, 500, 503)
_EXPLANATIONS: Final = {
    400: "The body is not JSON, or broke off.",
    401: "No token, or not one of ours.",
    403: "A page of another site made the request.",
    404: "It does not exist.",
    409: "The present state forbids it; `code` says which.",
    413: "The body is too large.",
    415: "The body is of an unknown kind.",
    421: "The Host header is not a name of this collector.",
    422: "Fields cannot be used; `errors` lists all of them.",
    426: "The job speaks a protocol version that this collector does not.",
    500: "The collector failed; its log tells why.",
    503: "The database does not answer; `Retry-After` says when to come again.",
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
    """Document refusals of an endpoint, beside those that every endpoint may give."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": _EXPLANATIONS.get(status, HTTPStatus(status).phrase),
            "content": {PROBLEM_CONTENT_TYPE: {"schema": schema}},
        }
        for status in sorted({*statuses, *_ALWAYS})
    }


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Document a body that an endpoint reads in a worker thread, not FastAPI in the event loop."""
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
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"bearer": []}] if app.state.settings.tokens else [{"bearer": []}, {}]
    for path in OPEN_PATHS & set(document["paths"]):
        for operation in document["paths"][path].values():
            operation["security"] = []
    return document

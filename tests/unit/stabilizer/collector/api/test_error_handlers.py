"""Every error becomes a problem document with its status and a stable code."""

import logging
from typing import Annotated

import pytest
from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from stabilizer import errors
from stabilizer.collector.api.error_handlers import STATUSES, status_of
from stabilizer.protocol.message import (
    MIN_PROTOCOL_VERSION,
    PROBLEM_CONTENT_TYPE,
    PROTOCOL_VERSION,
    Problem,
)


def raise_at_root(app, error):
    @app.get("/")
    def root():
        raise error


def problem_of(answer):
    assert answer.headers["content-type"] == PROBLEM_CONTENT_TYPE
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == answer.status_code
    return problem


CASES = [
    (errors.InvalidInputError("no", field="a", value=1, allowed="2"), 422, "invalid_input"),
    (errors.InvalidInputError("no", field="a", code="catalog_mismatch"), 422, "catalog_mismatch"),
    (errors.ConfigurationError("no"), 422, "invalid_configuration"),
    (errors.ProtocolVersionError("old"), 426, "protocol_version_unsupported"),
    (errors.AuthenticationError("who"), 401, "unauthenticated"),
    (errors.NotFoundError("gone"), 404, "not_found"),
    (errors.ConflictError("late", code="past_attempt"), 409, "past_attempt"),
    (errors.StorageError("away"), 503, "storage_unavailable"),
]


@pytest.mark.parametrize(("error", "status", "code"), CASES, ids=[case[2] for case in CASES])
def test_an_error_has_the_status_of_its_class(app, client, error, status, code):
    raise_at_root(app, error)
    answer = client.get("/")
    problem = problem_of(answer)
    assert (problem.status, problem.code, problem.detail) == (status, code, error.message)


def test_a_subclass_has_the_status_of_the_nearest_class_in_the_table():
    class Special(errors.ConflictError):
        pass

    assert status_of(Special("x")) == STATUSES[errors.ConflictError]


def test_storage_that_is_away_says_when_to_come_again(app, client):
    raise_at_root(app, errors.StorageError("away"))
    assert client.get("/").headers["retry-after"] == "1"


def test_missing_authentication_says_how(app, client):
    raise_at_root(app, errors.AuthenticationError("who"))
    assert client.get("/").headers["www-authenticate"] == "Bearer"


def test_an_old_protocol_gets_both_versions(app, client):
    raise_at_root(app, errors.ProtocolVersionError("old"))
    answer = client.get("/")
    versions = {
        "protocol_version": PROTOCOL_VERSION,
        "min_protocol_version": MIN_PROTOCOL_VERSION,
    }
    assert problem_of(answer).model_extra == versions
    assert answer.headers["upgrade"] == f"stabilizer/{PROTOCOL_VERSION}"


def test_a_rule_file_lists_every_mistake_with_its_line(app, client):
    leaves = [
        errors.RuleDefinitionError("unknown metric", file="a.yaml", line=3, field="rules.0.select"),
        errors.RuleDefinitionError("not a number", file="a.yaml", line=9, field="rules.1.for"),
    ]
    nested = errors.RuleFileError("more", [leaves[1]])
    raise_at_root(app, errors.RuleFileError("2 mistakes", [leaves[0], nested]))
    problem = problem_of(client.get("/"))
    assert (problem.status, problem.code) == (422, "invalid_rule")
    assert [(field.line, field.field, field.allowed) for field in problem.errors] == [
        (3, "rules.0.select", "unknown metric"),
        (9, "rules.1.for", "not a number"),
    ]
    assert "a.yaml:3: rules.0.select: unknown metric" in problem.detail


@pytest.mark.parametrize(
    "error",
    [ValueError("secret /etc/path"), errors.ControlError("secret"), errors.TelemetryError("s")],
    ids=["unexpected", "of another room", "of the agent"],
)
def test_an_unexpected_error_reveals_no_details(app, client, caplog, error):
    raise_at_root(app, error)
    with caplog.at_level(logging.ERROR):
        answer = client.get("/")
    problem = problem_of(answer)
    assert (problem.status, problem.code) == (500, "internal_error")
    assert "secret" not in answer.text
    assert any(record.exc_info for record in caplog.records)


def test_the_router_refuses_with_problems_too(app, client):
    raise_at_root(app, ValueError())
    missing = problem_of(client.get("/nowhere"))
    wrong = client.post("/")
    assert (missing.status, missing.code) == (404, "path_not_found")
    assert problem_of(wrong).code == "method_not_allowed"
    assert wrong.headers["allow"] == "GET"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: Annotated[int, Field(ge=1)]
    names: list[Annotated[str, Field(max_length=3)]] = []


def test_validation_lists_all_fields_with_values_and_what_is_allowed(app, client):
    @app.post("/")
    def post(body: Body, limit: Annotated[int, Query(ge=1)] = 1):
        return body

    answer = client.post(
        "/?limit=0", json={"count": 0, "names": ["ok", "long"], "colour": "x" * 1000}
    )
    problem = problem_of(answer)
    found = {field.field: field for field in problem.errors}
    assert (problem.status, problem.code) == (422, "invalid_input")
    assert set(found) == {"limit", "count", "names.1", "colour"}
    assert found["count"].value == 0
    assert "greater than or equal to 1" in found["count"].allowed
    assert found["names.1"].value == "long"
    assert str(found["colour"].value).endswith("(1000 characters)")
    assert len(answer.content) < 2000


def test_thousands_of_bad_fields_stay_a_short_answer(app, client):
    @app.post("/")
    def post(body: Body):
        return body

    answer = client.post("/", json={"count": 1, "names": ["long"] * 5000})
    problem = problem_of(answer)
    assert len(problem.errors) == 100
    assert problem.detail.startswith("5000 invalid field(s)")

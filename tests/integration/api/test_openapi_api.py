"""The surface that others depend on: paths, operation ids, tags, refusals. Frozen here."""

import re

import pytest

OPERATIONS = {
    ("GET", "/api/v1/audit"): "list_audit",
    ("GET", "/api/v1/commands/{command_id}"): "get_command",
    ("POST", "/api/v1/commands/{command_id}/approve"): "approve_command",
    ("POST", "/api/v1/commands/{command_id}/cancel"): "cancel_command",
    ("GET", "/api/v1/commands/{command_id}/preview"): "preview_stored_command",
    ("POST", "/api/v1/commands/{command_id}/reject"): "reject_command",
    ("GET", "/api/v1/control"): "get_control",
    ("PUT", "/api/v1/control"): "put_control",
    ("GET", "/api/v1/events"): "stream_events",
    ("GET", "/api/v1/incidents/{incident_id}"): "get_incident",
    ("GET", "/api/v1/overview"): "get_overview",
    ("PUT", "/api/v1/rules"): "put_rules",
    ("GET", "/api/v1/rules/versions"): "list_rules_versions",
    ("GET", "/api/v1/runs"): "list_runs",
    ("POST", "/api/v1/runs"): "register_run",
    ("DELETE", "/api/v1/runs/{run_id}"): "delete_run",
    ("GET", "/api/v1/runs/{run_id}"): "get_run",
    ("PATCH", "/api/v1/runs/{run_id}"): "update_run",
    ("GET", "/api/v1/runs/{run_id}/alerts"): "list_alerts",
    ("GET", "/api/v1/runs/{run_id}/audit"): "list_run_audit",
    ("POST", "/api/v1/runs/{run_id}/catalogs"): "add_catalogs",
    ("GET", "/api/v1/runs/{run_id}/commands"): "list_commands",
    ("POST", "/api/v1/runs/{run_id}/commands"): "create_command",
    ("GET", "/api/v1/runs/{run_id}/commands/next"): "next_commands",
    ("POST", "/api/v1/runs/{run_id}/commands/preview"): "preview_command",
    ("POST", "/api/v1/runs/{run_id}/commands/{command_id}/result"): "post_result",
    ("POST", "/api/v1/runs/{run_id}/frames"): "post_frames",
    ("POST", "/api/v1/runs/{run_id}/heartbeat"): "post_heartbeat",
    ("GET", "/api/v1/runs/{run_id}/heatmap"): "read_heatmap",
    ("GET", "/api/v1/runs/{run_id}/incidents"): "list_incidents",
    ("GET", "/api/v1/runs/{run_id}/markers"): "list_markers",
    ("GET", "/api/v1/runs/{run_id}/metrics"): "list_metrics",
    ("GET", "/api/v1/runs/{run_id}/rules"): "get_run_rules",
    ("PUT", "/api/v1/runs/{run_id}/rules"): "put_run_rules",
    ("GET", "/api/v1/runs/{run_id}/rules/versions"): "list_run_rules_versions",
    ("GET", "/api/v1/runs/{run_id}/series"): "list_series",
    ("GET", "/api/v1/runs/{run_id}/series/data"): "read_series",
    ("GET", "/api/v1/runs/{run_id}/snapshots"): "list_snapshots",
    ("GET", "/api/v1/silences"): "list_silences",
    ("POST", "/api/v1/silences"): "create_silence",
    ("DELETE", "/api/v1/silences/{silence_id}"): "delete_silence",
    ("GET", "/healthz"): "healthz",
    ("GET", "/metrics"): "metrics",
    ("GET", "/readyz"): "readyz",
}
WITH_BODY = {"POST", "PUT", "PATCH"}


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json()


@pytest.fixture
def operations(document):
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_paths_and_operation_ids_are_those_that_clients_know(operations):
    assert {key: operation["operationId"] for key, operation in operations.items()} == OPERATIONS


def test_every_operation_has_a_title_a_text_and_a_tag_that_is_described(document, operations):
    described = {tag["name"] for tag in document["tags"]}
    for operation in operations.values():
        assert operation["summary"]
        assert operation["description"]
        assert set(operation["tags"]) <= described


def test_every_operation_documents_its_refusals_as_problems(operations):
    for operation in operations.values():
        refusals = {s: r for s, r in operation["responses"].items() if not s.startswith("2")}
        assert set(refusals) >= {"401", "403", "422", "500", "503"}
        for refusal in refusals.values():
            assert list(refusal["content"]) == ["application/problem+json"]


def test_every_body_is_described_with_its_limits(operations):
    for (method, path), operation in operations.items():
        if method in WITH_BODY:
            assert operation["requestBody"]["content"], path
            assert set(operation["responses"]) >= {"400", "413", "415"}, path


def test_every_answer_has_a_model(operations):
    for operation in operations.values():
        for status, answer in operation["responses"].items():
            if status in {"200", "201"}:
                assert all(content.get("schema") for content in answer["content"].values())


def test_every_reference_leads_somewhere(document):
    schemas = document["components"]["schemas"]

    def references(node):
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert names <= set(schemas)
    assert {"Problem", "RunRegister", "JsonBatch", "BatchAnswer"} <= names


def test_probes_and_scrapers_need_no_token_and_all_else_may(document, operations):
    assert document["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer"}
    }
    open_paths = {path for (_, path), found in operations.items() if found.get("security") == []}
    assert open_paths == {"/healthz", "/readyz", "/metrics"}


def test_the_docs_page_loads_nothing_from_other_hosts(client):
    page = client.get("/docs").text
    loaded = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page)
    assert {"/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/openapi.json"} <= set(loaded)
    assert [url for url in loaded if not re.match(r"/[^/]", url)] == []
    assert '"validatorUrl": null' in page
    for url in loaded:
        assert client.get(url).status_code == 200
    style = client.get("/docs/swagger-ui.css").text
    assert re.findall(r"""(?:@import|url\()\s*["']?(?:https?:)?//""", style) == []


class TestProse:
    """Every part of the document explains itself."""

    def test_every_property_of_every_schema_has_a_description(self, document):
        missing = [
            f"{name}.{field}"
            for name, schema in document["components"]["schemas"].items()
            for field, found in schema.get("properties", {}).items()
            if not found.get("description", "").strip()
        ]
        assert missing == []

    def test_every_schema_has_a_description(self, document):
        schemas = document["components"]["schemas"].items()
        assert [name for name, schema in schemas if not schema.get("description")] == []

    def test_every_parameter_has_a_description(self, operations):
        missing = [
            f"{key}: {parameter['name']}"
            for key, operation in operations.items()
            for parameter in operation.get("parameters", ())
            if not parameter.get("description", "").strip()
        ]
        assert missing == []

    def test_every_response_has_a_description(self, operations):
        assert all(
            answer["description"]
            for operation in operations.values()
            for answer in operation["responses"].values()
        )

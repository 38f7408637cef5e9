"""A GET opens no write transaction."""

import pytest
from fastapi.routing import APIRoute

from stabilizer.collector.storage.engine import Database

WRITES = {
    "/api/v1/runs/{run_id}/commands/next": "a job's poll: it delivers commands, as jobs expect"
}
QUERIES = {
    "/api/v1/runs/{run_id}/series/data": {"series": "loss"},
    "/api/v1/runs/{run_id}/heatmap": {"metric": "loss"},
}
STREAMS = {"/api/v1/events"}  # do not end; opened in test_events_api

POLICY = """\
rules:
  - {name: loss_not_finite, select: {metric: loss}, detect: {nonfinite: {}}, severity: divergence}
policy: {ladder: [{reduce_lr: {factor: 0.5}}], act_on: {any: [severity:divergence]}}
"""


@pytest.fixture
def job(client, make_job):
    """A job with frames, a snapshot, an incident and a proposed command."""
    job = make_job(client)
    assert job.register(name="read", policy=POLICY).status_code == 201
    snapshot = {"id": "s1", "attempt": 1, "step": 1, "finite": True}
    assert job.send(range(1, 11), snapshots=[snapshot]).status_code == 200
    assert job.send([11], [[float("nan"), 1.0]]).status_code == 200
    return job


def get_routes(app):
    """Every documented GET of the API; all routes, those of included routers too."""
    return sorted(
        path
        for path, operations in app.openapi()["paths"].items()
        if "get" in operations and path not in STREAMS
    )


def test_no_get_opens_a_write_transaction(app, job, monkeypatch):
    names = {
        "run_id": job.run_id,
        "incident_id": job.client.get(f"{job.path}/incidents").json()[0]["id"],
        "command_id": job.client.get(f"{job.path}/commands").json()[0]["id"],
    }
    opened = []
    transaction = Database.transaction

    def record(self):
        opened.append(self)
        return transaction(self)

    monkeypatch.setattr(Database, "transaction", record)
    writers, refused = set(), {}
    for path in get_routes(app):
        opened.clear()
        query = QUERIES.get(path, {"attempt": 1, "wait": 0} if path in WRITES else {})
        answer = job.client.get(path.format(**names), params=query)
        if answer.status_code != 200:
            refused[path] = answer.text
        if opened:
            writers.add(path)
    assert writers == set(WRITES)
    assert not refused


def test_every_get_of_the_app_is_documented(app):
    """Else the test above would not see it."""
    hidden = {
        route.path
        for route in app.routes
        if isinstance(route, APIRoute) and "GET" in route.methods and not route.include_in_schema
    }
    assert hidden == set()

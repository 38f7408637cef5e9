"""Probes, metrics, access and mistakes of ours, on the whole app."""

import logging

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from stabilizer.collector.api.app import create_app
from stabilizer.errors import StorageError

LOOPBACK = "http://127.0.0.1:8000"
TOKEN = "t" * 43


def samples(client):
    """All samples of a scrape: (name, labels) to value."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(client, name, **labels):
    return samples(client).get((name, tuple(sorted(labels.items()))), 0.0)


class TestProbes:
    def test_alive_and_ready(self, client):
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ok"}

    def test_a_database_that_is_away_is_alive_but_not_ready(
        self, app, client, refused, monkeypatch
    ):
        def away():
            raise StorageError("no route to the database")

        monkeypatch.setattr(app.state.services.database, "check", away)
        assert client.get("/healthz").status_code == 200
        refused(client.get("/readyz"), 503, "storage_unavailable")

    def test_a_database_of_another_version_is_not_ready(self, app, client, refused):
        with app.state.services.database.transaction() as session:
            session.execute(text("UPDATE alembic_version SET version_num = 'of-the-future'"))
        problem = refused(client.get("/readyz"), 503, "schema_outdated")
        assert "of-the-future" in problem["detail"]

    def test_without_sweeps_it_is_not_ready(self, app, refused):
        quiet = TestClient(app, base_url=LOOPBACK)  # without `with` the app never starts
        refused(quiet.get("/readyz"), 503, "not_sweeping")


class TestMetrics:
    def test_requests_are_counted_by_template_never_by_path(self, job):
        for number in range(20):
            job.client.get(f"/api/v1/runs/made-up-{number}")
            job.client.get(f"/made/up/{number}")
        job.client.request("BREW", "/api/v1/runs")
        found = samples(job.client)
        routes = {dict(labels).get("route") for _, labels in found} - {None}
        methods = {dict(labels).get("method") for _, labels in found} - {None}
        key = (("method", "GET"), ("route", "/api/v1/runs/{run_id}"), ("status", "404"))
        assert found["stabilizer_http_requests_total", key] == 20
        assert not any("made" in route for route in routes)
        assert methods <= {"GET", "POST", "other"}

    def test_latency_is_a_histogram_by_route(self, job):
        job.send([1])
        labels = {"method": "POST", "route": "/api/v1/runs/{run_id}/frames"}
        assert value(job.client, "stabilizer_http_request_seconds_count", **labels) == 1
        assert value(job.client, "stabilizer_http_request_seconds_bucket", le="60.0", **labels) == 1

    def test_frames_and_points_are_counted_once(self, job, clock):
        body = job.body([1, 2, 3])
        job.post(body)
        job.post(body)
        job.send_json(sequence=1, frames=[{"step": 4, "values": {"loss": 1.0}}])
        found = samples(job.client)
        assert found["stabilizer_frames_total", ()] == 4
        assert found["stabilizer_points_total", ()] == 7
        assert found["stabilizer_last_frame_timestamp_seconds", ()] == clock.now().timestamp()

    def test_batches_are_counted_by_outcome_and_code(self, job):
        body = job.body([1])
        job.post(body)
        job.post(body)
        job.post(body[:-1])
        job.send([1], attempt=9)
        job.post(b"{", "application/json")

        def count(outcome, code=""):
            return value(job.client, "stabilizer_batches_total", outcome=outcome, code=code)

        assert count("accepted") == 1
        assert count("duplicate") == 1
        assert count("refused", "malformed_batch") == 1
        assert count("refused", "unknown_attempt") == 1
        assert count("refused", "malformed_json") == 1

    def test_the_state_of_all_runs_is_shown(self, job):
        job.command({"kind": "pause"})
        job.register(name="other")
        job.client.post(f"{job.path}/heartbeat", json={"attempt": 1, "step": 1, "state": "paused"})
        assert value(job.client, "stabilizer_runs", state="running") == 1
        assert value(job.client, "stabilizer_runs", state="paused") == 1
        assert value(job.client, "stabilizer_runs", state="lost") == 0
        assert value(job.client, "stabilizer_commands", kind="pause", state="pending") == 1
        assert value(job.client, "stabilizer_incidents", state="open") == 0
        assert value(job.client, "stabilizer_broken_rules") == 0

    def test_the_risk_of_a_running_job_is_shown(self, job):
        job.send(range(1, 81))
        labels = {"run_id": job.run_id, "run": "idefics"}
        assert 0 < value(job.client, "stabilizer_run_risk", **labels) < 1

    def test_a_database_that_is_away_still_leaves_the_counters(self, app, job, monkeypatch):
        def away():
            raise StorageError("away")

        monkeypatch.setattr(app.state.services.overview, "counts", away)
        found = samples(job.client)
        assert found["stabilizer_scrape_failures_total", ()] == 1
        assert not any(name == "stabilizer_runs" for name, _ in found)

    def test_the_build_is_reported(self, client):
        labels = next(
            dict(labels) for name, labels in samples(client) if name == "stabilizer_build_info"
        )
        assert set(labels) == {"version", "python", "protocol_version"}

    def test_two_apps_in_one_process_do_not_mix(self, job, settings, clock, tmp_path):
        job.send([1])
        other = create_app(
            settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/other.db"}), clock
        )
        with TestClient(other, base_url=LOOPBACK) as client:
            assert value(client, "stabilizer_frames_total") == 0


class TestMistakes:
    def test_a_mistake_of_ours_is_a_problem_without_the_inside(
        self, app, job, refused, monkeypatch, caplog
    ):
        def broken(_run_id):
            raise RuntimeError("password=hunter2")

        monkeypatch.setattr(app.state.services.runs, "get", broken)
        with caplog.at_level(logging.ERROR):
            answer = job.client.get(job.path)
        refused(answer, 500, "internal_error")
        assert "hunter2" not in answer.text
        labels = {"method": "GET", "route": "/api/v1/runs/{run_id}", "status": "500"}
        assert value(job.client, "stabilizer_http_requests_total", **labels) == 1

    def test_a_database_that_is_away_says_when_to_come_again(self, app, job, refused, monkeypatch):
        def away(*_):
            raise StorageError("away")

        monkeypatch.setattr(app.state.services.ingest, "accept", away)
        answer = job.send([1])
        refused(answer, 503, "storage_unavailable")
        assert answer.headers["retry-after"] == "1"

    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("GET", "/api/v1/nothing", 404, "path_not_found"),
            ("GET", "/api/v2/runs", 404, "path_not_found"),
            ("PUT", "/api/v1/runs", 405, "method_not_allowed"),
        ],
    )
    def test_paths_and_methods_that_are_not_there(
        self, client, refused, method, path, status, code
    ):
        refused(client.request(method, path), status, code)


class TestAccess:
    @pytest.fixture
    def guarded(self, settings, clock):
        app = create_app(type(settings)(**{**settings.model_dump(), "tokens": (TOKEN,)}), clock)
        with TestClient(app, base_url=LOOPBACK) as client:
            yield client

    def test_without_the_token_nothing_is_reported(self, guarded, refused):
        refused(guarded.get("/api/v1/runs"), 401, "unauthenticated")
        refused(guarded.get("/api/v1/nothing"), 401, "unauthenticated")
        refused(
            guarded.get("/api/v1/runs", headers={"authorization": "Bearer " + "w" * 43}),
            401,
            "unauthenticated",
        )

    def test_it_is_refused_before_its_body_is_read(self, guarded, refused):
        answer = guarded.post("/api/v1/runs", content=b"{", headers={"content-length": str(10**9)})
        refused(answer, 401, "unauthenticated")

    def test_with_it_all_is_open(self, guarded):
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert guarded.get("/api/v1/runs", headers=headers).status_code == 200

    @pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
    def test_probes_and_scrapers_need_none(self, guarded, path):
        assert guarded.get(path).status_code == 200

    def test_pages_of_other_sites_are_kept_out(self, client, refused):
        answer = client.put(
            "/api/v1/control",
            json={"disarmed": True, "reason": "evil"},
            headers={"origin": "https://evil.example"},
        )
        refused(answer, 403, "cross_origin")
        assert not client.get("/api/v1/control").json()["disarmed"]

    def test_a_name_that_was_pointed_here_is_kept_out(self, client, refused):
        answer = client.get("/api/v1/runs", headers={"host": "evil.example:8000"})
        refused(answer, 421, "host_not_allowed")

    def test_refusals_are_counted_without_a_route(self, guarded):
        guarded.get("/api/v1/runs")
        labels = {"method": "GET", "route": "none", "status": "401"}
        assert value(guarded, "stabilizer_http_requests_total", **labels) == 1

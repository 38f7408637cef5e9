"""Runs: register, look up, change, remove."""

import pytest

from stabilizer.protocol.queries import RunPage
from stabilizer.protocol.runs import Run, RunRegistered

UNKNOWN = "/api/v1/runs/0123456789abcdef"


class TestRegister:
    def test_a_job_gets_a_run_an_attempt_and_a_plan(self, job):
        answer = job.register(name="other")
        registered = RunRegistered.model_validate_json(answer.content)
        assert answer.status_code == 201
        assert (registered.attempt, registered.mode.value) == (1, "propose")
        assert registered.plan.every >= 1

    def test_the_same_name_and_key_is_the_same_run_and_the_next_attempt(self, job):
        first = job.run_id
        assert job.register().json()["run_id"] == first
        assert job.attempt == 2

    def test_another_key_is_another_run(self, job):
        first = job.run_id
        assert job.register(key="job-2").json()["run_id"] != first

    def test_an_old_protocol_is_refused_with_both_versions(self, job, refused):
        problem = refused(job.register(protocol_version=0), 426, "protocol_version_unsupported")
        assert (problem["protocol_version"], problem["min_protocol_version"]) == (2, 1)
        assert "0" in problem["detail"]

    def test_a_newer_protocol_is_reported_before_its_unknown_fields_are(self, job, refused):
        answer = job.register(protocol_version=99, invented_later=1)
        problem = refused(answer, 426, "protocol_version_unsupported")
        assert "upgrade the collector" in problem["detail"]

    @pytest.mark.parametrize("field", ["start_step", "world_size", "global_batch"])
    def test_a_number_that_no_column_holds_is_refused(self, job, refused, field):
        answer = job.register(name="new", **{field: 2**62})
        refused(answer, 422, "invalid_input", field)

    def test_a_policy_of_endless_brackets_is_refused(self, job, refused):
        problem = refused(job.register(name="new", policy="[" * 20_000), 422, "invalid_rule")
        assert "too deep" in problem["detail"]

    def test_a_policy_with_mistakes_is_refused_with_every_line(self, job, refused):
        policy = "rules:\n  - name: a\n    choose: {}\n    severity: terrible\n"
        problem = refused(job.register(name="new", policy=policy), 422, "invalid_rule")
        assert len(problem["errors"]) >= 2
        assert all(error["line"] >= 1 for error in problem["errors"])

    def test_unknown_and_missing_fields_are_all_reported(self, job, refused):
        answer = job.client.post("/api/v1/runs", json={"title": "x", "world_size": 0})
        refused(answer, 422, "invalid_input", "title", "name", "protocol_version", "world_size")

    @pytest.mark.parametrize(
        "catalog",
        [
            {"series": []},
            {"series": [{"metric": "Loss"}]},
            {"series": [{"metric": "loss"}, {"metric": "loss"}]},
        ],
        ids=["empty", "bad name", "twice"],
    )
    def test_a_catalog_that_means_nothing_is_refused(self, job, refused, catalog):
        problem = refused(job.register(name="new", catalogs=[catalog]), 422, "invalid_input")
        assert all(error["field"].startswith("catalogs.0") for error in problem["errors"])

    def test_nothing_of_a_refused_registration_is_kept(self, job):
        job.register(name="refused", policy="rules: 3")
        job.register(name="refused", protocol_version=99)
        names = [run["name"] for run in job.client.get("/api/v1/runs").json()["runs"]]
        assert names == ["idefics"]

    def test_not_a_number_in_a_configuration_is_not_json(self, job, refused):
        body = '{"protocol_version": 1, "name": "x", "config": {"lr": NaN}}'
        answer = job.client.post(
            "/api/v1/runs", content=body, headers={"content-type": "application/json"}
        )
        refused(answer, 400, "malformed_json")

    def test_another_content_type_is_refused(self, job, refused):
        refused(job.client.post("/api/v1/runs", content="name=x"), 415, "unsupported_media_type")


class TestList:
    def test_pages_follow_each_other_and_end(self, job):
        for number in range(5):
            job.register(name=f"more-{number}")
        seen, cursor = [], None
        while True:
            params = {"limit": 2, "sort": "name", "descending": False}
            answer = job.client.get(
                "/api/v1/runs", params={**params, **({"cursor": cursor} if cursor else {})}
            )
            page = RunPage.model_validate_json(answer.content)
            seen += [run.name for run in page.runs]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert seen == ["idefics", *(f"more-{number}" for number in range(5))]
        assert page.total == 6

    def test_states_can_be_given_more_than_once(self, job):
        def total(*states):
            return job.client.get("/api/v1/runs", params={"states": states}).json()["total"]

        assert (total("running", "paused"), total("finished", "lost"), total()) == (1, 0, 1)

    @pytest.mark.parametrize(
        ("params", "field"),
        [
            ({"limit": 0}, "limit"),
            ({"limit": "many"}, "limit"),
            ({"states": "sleeping"}, "states.0"),
            ({"stat": "running"}, "stat"),
            ({"sort": "colour"}, "sort"),
        ],
    )
    def test_a_query_that_means_nothing_is_refused(self, client, refused, params, field):
        refused(client.get("/api/v1/runs", params=params), 422, "invalid_input", field)

    def test_a_made_up_cursor_is_refused(self, client, refused):
        refused(client.get("/api/v1/runs", params={"cursor": "x"}), 422, "invalid_input", "cursor")


class TestOne:
    def test_it_shows_its_attempts(self, job):
        run = Run.model_validate_json(job.client.get(job.path).content)
        assert (run.id, run.name, run.attempt) == (job.run_id, "idefics", 1)
        assert [attempt.number for attempt in run.attempts] == [1]

    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    def test_one_that_is_not_there_is_404(self, client, refused, method):
        refused(client.request(method, UNKNOWN, params={"reason": "x"}), 404, "unknown_run")

    def test_an_id_of_absurd_length_is_refused(self, client, refused):
        refused(client.get("/api/v1/runs/" + "x" * 300), 422, "invalid_input", "run_id")


class TestUpdate:
    def test_the_mode_changes_and_the_log_says_who_did_it(self, job):
        answer = job.client.patch(
            job.path,
            json={"mode": "auto", "reason": "trusted now"},
            headers={"X-Stabilizer-Actor": "ada"},
        )
        assert answer.json()["mode"] == "auto"
        entries = job.client.get(f"{job.path}/audit").json()["entries"]
        changed = [entry for entry in entries if entry["action"] == "run_mode_changed"]
        assert [(entry["actor"], entry["message"]) for entry in changed] == [
            ("person:ada", "trusted now")
        ]

    @pytest.mark.parametrize(
        ("message", "field"),
        [
            ({"mode": "auto"}, "reason"),
            ({"mode": "reckless", "reason": "x"}, "mode"),
            ({"mode": "auto", "reason": "x", "step": 3}, "step"),
        ],
    )
    def test_anything_else_is_refused(self, job, refused, message, field):
        refused(job.client.patch(job.path, json=message), 422, "invalid_input", field)

    def test_an_invalid_name_of_an_actor_is_refused(self, job, refused):
        answer = job.client.patch(
            job.path,
            json={"mode": "auto", "reason": "x"},
            headers={"X-Stabilizer-Actor": "<script>"},
        )
        refused(answer, 422, "invalid_input", "X-Stabilizer-Actor")
        assert job.client.get(job.path).json()["mode"] == "propose"


class TestDelete:
    def finish(self, job):
        job.client.post(
            f"{job.path}/heartbeat", json={"attempt": 1, "step": 1, "state": "finished"}
        )

    def test_it_is_gone_and_the_log_keeps_why(self, job, refused):
        self.finish(job)
        assert job.client.delete(job.path, params={"reason": "a try"}).status_code == 204
        refused(job.client.get(job.path), 404, "unknown_run")
        last = job.client.get("/api/v1/audit").json()["entries"][-1]
        assert (last["action"], last["message"], last["actor"]) == (
            "run_deleted",
            "a try",
            "person:api",
        )

    def test_without_a_reason_it_stays(self, job, refused):
        refused(job.client.delete(job.path), 422, "invalid_input", "reason")
        assert job.client.get(job.path).status_code == 200

"""Commands by hand: written, delivered, settled, each once and each with its row in the log."""

import time

import pytest
from sqlalchemy import Engine, event

from stabilizer.protocol.commands import Command
from stabilizer.protocol.queries import CommandCreate

PAUSE = {"kind": "pause"}
UNKNOWN = "/api/v1/commands/0123456789abcdef"
SNAPSHOT = {"id": "s-100", "attempt": 1, "step": 100, "finite": True, "samples": 800}


def applied(**changes):
    return {
        "state": "applied",
        "applied_step": 12,
        "read_back": {"attempt": 1, "step": 12, "lr": {"0": 1e-3}},
        **changes,
    }


def settle(job, command_id, /, **changes):
    return job.client.post(
        f"{job.path}/commands/{command_id}/result",
        json=applied(**{"command_id": command_id, **changes}),
    )


@pytest.fixture
def command(job):
    """A command that waits for the job."""
    return job.command(PAUSE).json()


class TestCreate:
    @pytest.mark.parametrize(
        "parameters",
        [
            PAUSE,
            {"kind": "stop"},
            {"kind": "checkpoint_now"},
            {"kind": "reduce_lr", "factor": 0.5, "hold_steps": 100, "ramp_steps": 50},
        ],
        ids=lambda parameters: parameters["kind"],
    )
    def test_a_command_waits_for_the_job_and_is_in_its_next_answer(self, job, parameters):
        answer = job.command(parameters)
        command = Command.model_validate_json(answer.content)
        assert (answer.status_code, command.state.value) == (201, "pending")
        assert (command.actor, command.attempt) == ("person:api", 1)
        delivered = job.send([1]).json()["commands"]
        assert [(c["id"], c["state"]) for c in delivered] == [(command.id, "delivered")]

    def test_a_rollback_names_its_snapshot_in_full(self, job):
        job.send([99, 100], snapshots=[SNAPSHOT])
        answer = job.command({"kind": "rollback", "snapshot_id": "s-100", "skip_steps": 10})
        assert answer.status_code == 201, answer.text
        assert answer.json()["parameters"]["target"] == {
            "snapshot_id": "s-100",
            "attempt": 1,
            "attempt_id": None,  # set on delivery
            "step": 100,
        }

    def test_a_rollback_to_a_snapshot_that_nobody_holds_is_refused(self, job, refused):
        answer = job.command({"kind": "rollback", "snapshot_id": "s-9"})
        assert answer.status_code in {404, 409}
        assert answer.json()["code"] not in {"internal_error", "path_not_found"}

    @pytest.mark.parametrize(
        ("message", "field"),
        [
            ({"parameters": {"kind": "explode"}}, "parameters"),
            ({"parameters": {}}, "parameters"),
            ({"parameters": {"kind": "reduce_lr", "factor": 0}}, "parameters.reduce_lr.factor"),
            ({"parameters": {"kind": "reduce_lr", "factor": "nan"}}, "parameters.reduce_lr.factor"),
            ({"parameters": PAUSE, "reason": ""}, "reason"),
            ({"parameters": PAUSE, "ttl_seconds": 0}, "ttl_seconds"),
            ({"parameters": PAUSE, "colour": 1}, "colour"),
        ],
    )
    def test_what_means_nothing_is_refused(self, job, refused, message, field):
        answer = job.client.post(f"{job.path}/commands", json={"reason": "by hand", **message})
        refused(answer, 422, "invalid_input", field)

    def test_for_a_past_attempt_it_is_refused(self, job, refused):
        job.register()
        answer = job.command(PAUSE, attempt=1)
        assert (answer.status_code, answer.json()["code"]) == (409, "past_attempt")

    def test_for_an_unknown_run_it_is_404(self, job, refused):
        job.run_id = "nobody"
        refused(job.command(PAUSE), 404, "unknown_run")


class TestLookUp:
    def test_one_and_all_by_state(self, job, command):
        listed = job.client.get(f"{job.path}/commands", params={"states": ["pending", "applied"]})
        assert [found["id"] for found in listed.json()] == [command["id"]]
        assert job.client.get(f"{job.path}/commands", params={"states": "expired"}).json() == []
        assert job.client.get(f"/api/v1/commands/{command['id']}").json() == command

    def test_an_unknown_one_is_404(self, client, refused):
        refused(client.get(UNKNOWN), 404, "unknown_command")

    def test_an_unknown_state_is_refused(self, job, refused):
        answer = job.client.get(f"{job.path}/commands", params={"states": "lost"})
        refused(answer, 422, "invalid_input", "states.0")


class TestResult:
    def test_the_job_s_word_settles_it_and_twice_changes_nothing(self, job, command):
        job.send([1])
        first = settle(job, command["id"])
        second = settle(job, command["id"])
        assert (first.status_code, first.json()["state"]) == (200, "applied")
        assert first.json()["result"]["read_back"]["lr"] == {"0": 1e-3}
        assert second.json() == first.json()
        assert job.send([2]).json()["commands"] == []

    def test_another_id_than_that_of_the_path_is_refused(self, job, command, refused):
        answer = settle(job, command["id"], command_id="other")
        refused(answer, 422, "invalid_input", "command_id")

    def test_a_state_that_is_no_result_is_refused(self, job, command, refused):
        refused(settle(job, command["id"], state="pending"), 422, "invalid_input", "state")

    def test_a_step_that_cannot_be_is_refused(self, job, command, refused):
        answer = settle(job, command["id"], applied_step=-5)
        refused(answer, 422, "invalid_input", "applied_step")

    def test_a_second_and_other_word_is_a_conflict(self, job, command):
        job.send([1])
        settle(job, command["id"])
        answer = settle(job, command["id"], state="failed")
        assert (answer.status_code, answer.json()["code"]) == (409, "command_settled")

    def test_an_unknown_command_is_404(self, job, refused):
        refused(settle(job, "nobody"), 404, "unknown_command")

    def test_a_command_of_another_run_is_404(self, job, command, refused):
        job.register(name="other")
        refused(settle(job, command["id"]), 404, "unknown_command")


class TestPersons:
    def post(self, job, command_id, verb, message=None):
        return job.client.post(
            f"/api/v1/commands/{command_id}/{verb}",
            json={"reason": "looked at it"} if message is None else message,
            headers={"X-Stabilizer-Actor": "ada"},
        )

    def test_a_pending_command_can_be_cancelled_and_the_log_says_by_whom(self, job, command):
        answer = self.post(job, command["id"], "cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        assert job.send([1]).json()["commands"] == []
        last = job.client.get(f"{job.path}/audit").json()["entries"][-1]
        assert (last["actor"], last["subject"], last["message"]) == (
            "person:ada",
            command["id"],
            "looked at it",
        )

    @pytest.mark.parametrize("verb", ["approve", "reject"])
    def test_what_was_not_proposed_cannot_be_judged(self, job, command, verb):
        answer = self.post(job, command["id"], verb)
        assert answer.status_code == 409
        assert answer.json()["code"].startswith("command_")

    def test_a_settled_command_cannot_be_cancelled(self, job, command):
        job.send([1])
        settle(job, command["id"])
        answer = self.post(job, command["id"], "cancel")
        assert (answer.status_code, answer.json()["code"]) == (409, "command_settled")

    @pytest.mark.parametrize("verb", ["approve", "reject", "cancel"])
    def test_without_a_reason_nothing_happens(self, job, command, refused, verb):
        refused(self.post(job, command["id"], verb, {}), 422, "invalid_input", "reason")
        assert job.client.get(f"/api/v1/commands/{command['id']}").json()["state"] == "pending"

    @pytest.mark.parametrize("verb", ["approve", "reject", "cancel"])
    def test_an_unknown_command_is_404(self, job, refused, verb):
        refused(self.post(job, "nobody", verb), 404, "unknown_command")


class TestExpiry:
    def test_what_nobody_took_up_in_time_expires_with_the_next_sweep(self, app, job, clock):
        command = job.command(PAUSE, ttl_seconds=5).json()
        clock.advance(6)
        app.state.sweeper.sweep_once()
        found = job.client.get(f"/api/v1/commands/{command['id']}").json()
        assert found["state"] == "expired"
        assert job.send([1]).json()["commands"] == []


class TestNext:
    def next(self, job, **params):
        return job.client.get(f"{job.path}/commands/next", params={"attempt": 1, **params})

    def test_without_waiting_it_answers_at_once(self, job):
        answer = self.next(job)
        assert (answer.status_code, answer.json()["commands"]) == (200, [])

    def test_a_command_that_waits_is_handed_out_at_once(self, job, command):
        answer = self.next(job, wait=60)
        assert [(c["id"], c["state"]) for c in answer.json()["commands"]] == [
            (command["id"], "delivered")
        ]

    def test_one_that_was_lost_on_the_way_is_handed_out_again_at_once(self, job, command):
        self.next(job, wait=60)
        again = self.next(job, wait=60, known=["another"])
        assert [found["id"] for found in again.json()["commands"]] == [command["id"]]

    def test_one_that_the_job_has_does_not_end_the_wait(self, job, command):
        self.next(job)
        answer = self.next(job, wait=0.05, known=[command["id"]])
        assert [found["id"] for found in answer.json()["commands"]] == [command["id"]]

    def test_one_that_comes_while_it_looks_is_handed_out_at_once(self, app, job):
        """A command is committed right behind the first statement that looks for some."""
        message = CommandCreate.model_validate({"parameters": PAUSE, "reason": "look"})
        looked = []

        def issue(_connection, _cursor, statement, _parameters, _context, _many):
            looked.append("FROM commands" in statement)
            if looked.count(True) == 1 and looked[-1]:
                app.state.services.commands.create(job.run_id, message, "ada")

        began = time.monotonic()
        event.listen(Engine, "after_cursor_execute", issue)
        try:
            answer = self.next(job, wait=20)
        finally:
            event.remove(Engine, "after_cursor_execute", issue)
        assert [found["state"] for found in answer.json()["commands"]] == ["delivered"]
        assert time.monotonic() - began < 10

    @pytest.mark.parametrize(
        ("params", "field"),
        [
            ({"wait": 61}, "wait"),
            ({"wait": "nan"}, "wait"),
            ({"wait": -1}, "wait"),
            ({"attempt": 0}, "attempt"),
            ({"attempt": ""}, "attempt"),
            ({"timeout": 3}, "timeout"),
        ],
    )
    def test_a_query_that_means_nothing_is_refused(self, job, refused, params, field):
        refused(self.next(job, **params), 422, "invalid_input", field)

    def test_for_an_unknown_run_it_is_404(self, job, refused):
        job.run_id = "nobody"
        refused(self.next(job, wait=60), 404, "unknown_run")


class TestPreview:
    def test_it_shows_what_would_happen_and_writes_nothing(self, client, job):
        held = {"id": "s10", "attempt": 1, "step": 10, "finite": True, "samples": 640}
        job.send(range(1, 400), snapshots=[held])
        before = client.get(f"{job.path}/audit").json()
        asked = {"parameters": {"kind": "rollback", "skip_steps": 2}, "attempt": 1}
        found = client.post(f"{job.path}/commands/preview", json=asked).json()
        target = {"snapshot_id": "s10", "attempt": 1, "attempt_id": None, "step": 10}
        assert found["parameters"]["target"] == target
        assert (found["steps_lost"], found["skip_from_sample"]) == (389, 640)
        assert (found["seconds_lost"], found["warnings"]) == (None, ["global_batch_unknown"])
        assert client.get(f"{job.path}/audit").json() == before
        assert client.get(f"{job.path}/commands").json() == []

    def test_a_stored_command_is_shown_until_it_is_settled(self, client, job, refused):
        command = job.command({"kind": "pause"}).json()
        path = f"/api/v1/commands/{command['id']}"
        assert client.get(f"{path}/preview").json()["parameters"] == {"kind": "pause"}
        client.post(f"{path}/cancel", json={"reason": "no"})
        refused(client.get(f"{path}/preview"), 409, "command_settled")

    def test_refusals_are_those_of_the_command(self, client, job, refused):
        path = f"{job.path}/commands/preview"
        rollback = {"parameters": {"kind": "rollback"}}
        refused(client.post(path, json=rollback), 409, "no_healthy_snapshot")
        refused(client.post(path, json={**rollback, "attempt": 7}), 409, "past_attempt")
        asked = {"parameters": {"kind": "reduce_lr", "factor": 2}, "reason": "why"}
        fields = ("parameters.reduce_lr.factor", "reason")
        refused(client.post(path, json=asked), 422, "invalid_input", *fields)
        unknown = client.post("/api/v1/runs/unknown/commands/preview", json=rollback)
        refused(unknown, 404, "unknown_run")
        refused(client.get("/api/v1/commands/unknown/preview"), 404, "unknown_command")

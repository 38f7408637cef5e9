"""Alerts, incidents, rules, audit, the switch and silences."""

import numpy as np
import pytest

from stabilizer.protocol.queries import AuditPage, ControlState, RunRules, Silence

POLICY = """\
rules:
  - name: loss_not_finite
    select: {metric: loss}
    detect: {nonfinite: {}}
    for: 1
    severity: divergence
policy:
  mode: propose
  ladder:
    - {reduce_lr: {factor: 0.5, steps: 100}}
    - pause
  act_on: {any: [severity:divergence]}
"""


@pytest.fixture
def broken(job):
    """A job whose loss has just become NaN, under rules that call that a divergence."""
    assert job.register(name="broken", policy=POLICY).status_code == 201
    job.send(range(1, 11))
    assert job.send([11], [[float("nan"), 1.0]]).status_code == 200
    return job


class TestIncidents:
    def test_a_loss_that_is_nan_raises_an_alert_an_incident_and_a_proposal(self, broken):
        (alert,) = broken.client.get(f"{broken.path}/alerts").json()
        (incident,) = broken.client.get(f"{broken.path}/incidents").json()
        (command,) = broken.client.get(f"{broken.path}/commands").json()
        assert (alert["rule"], alert["state"], alert["value"]) == (
            "loss_not_finite",
            "firing",
            "NaN",
        )
        assert alert["incident_id"] == incident["id"]
        assert incident["severity"] == "divergence"
        assert (command["state"], command["incident_id"]) == ("proposed", incident["id"])
        assert broken.client.get(f"/api/v1/incidents/{incident['id']}").json() == incident

    def test_a_proposal_goes_to_the_job_only_after_an_operator_has_approved_it(self, broken):
        (command,) = broken.client.get(f"{broken.path}/commands").json()
        assert broken.send([12]).json()["commands"] == []
        answer = broken.client.post(
            f"/api/v1/commands/{command['id']}/approve", json={"reason": "agreed"}
        )
        assert (answer.status_code, answer.json()["state"]) == (200, "pending")
        delivered = broken.send([13]).json()["commands"]
        assert [found["id"] for found in delivered] == [command["id"]]

    def test_a_proposal_that_an_operator_rejects_is_never_sent(self, broken):
        (command,) = broken.client.get(f"{broken.path}/commands").json()
        answer = broken.client.post(
            f"/api/v1/commands/{command['id']}/reject", json={"reason": "wait"}
        )
        assert (answer.status_code, answer.json()["state"]) == (200, "rejected")
        sent = broken.send([12]).json()["commands"]
        assert command["id"] not in {found["id"] for found in sent}

    def test_alerts_can_be_asked_for_by_state(self, broken):
        def names(**params):
            found = broken.client.get(f"{broken.path}/alerts", params=params).json()
            return [alert["rule"] for alert in found]

        assert names(state="firing", limit=1) == ["loss_not_finite"]
        assert names(state="resolved") == []

    @pytest.mark.parametrize(
        ("params", "field"),
        [({"state": "open"}, "state"), ({"limit": 0}, "limit"), ({"x": 1}, "x")],
    )
    def test_a_query_that_means_nothing_is_refused(self, job, refused, params, field):
        answer = job.client.get(f"{job.path}/alerts", params=params)
        refused(answer, 422, "invalid_input", field)

    @pytest.mark.parametrize(
        "path",
        [
            "/incidents/x",
            "/runs/x/alerts",
            "/runs/x/incidents",
            "/runs/x/commands",
            "/runs/x/rules",
            "/runs/x/series",
        ],
    )
    def test_what_is_not_there_is_404(self, client, refused, path):
        kind = path.split("/")[1].rstrip("s")
        refused(client.get(f"/api/v1{path}"), 404, f"unknown_{kind}")


class TestRules:
    def test_the_file_is_shown_as_it_was_given_with_the_health_of_each_rule(self, broken):
        rules = RunRules.model_validate_json(broken.client.get(f"{broken.path}/rules").content)
        assert rules.text == POLICY
        assert [(health.name, health.ok) for health in rules.health] == [("loss_not_finite", True)]

    def test_the_risk_is_shown_once_enough_is_known(self, job):
        def risk():
            return RunRules.model_validate_json(job.client.get(f"{job.path}/rules").content).risk

        noise = np.random.default_rng(0)
        job.send(range(1, 21), 1 + 0.02 * noise.standard_normal((20, 2)))
        assert risk() is None
        job.send(range(21, 121), 1 + 0.02 * noise.standard_normal((100, 2)))
        calm = risk()
        job.send(range(121, 161), 9 + 0.02 * noise.standard_normal((40, 2)))
        lost = risk()
        assert 0 < calm.probability < lost.probability < 1
        assert lost.horizon == 100
        assert lost.signals


class TestAudit:
    def test_pages_follow_each_other_without_a_gap(self, broken):
        whole = AuditPage.model_validate_json(broken.client.get("/api/v1/audit").content)
        seen, after = [], 0
        while after is not None:
            page = AuditPage.model_validate_json(
                broken.client.get("/api/v1/audit", params={"after": after, "limit": 2}).content
            )
            seen += page.entries
            after = page.next_after
        assert seen == list(whole.entries)
        assert len(seen) > 4

    def test_a_run_shows_its_own_only(self, broken):
        entries = broken.client.get(f"{broken.path}/audit").json()["entries"]
        assert {entry["run_id"] for entry in entries} == {broken.run_id}

    @pytest.mark.parametrize("params", [{"after": -1}, {"limit": 5000}, {"after": 2**70}])
    def test_a_query_that_means_nothing_is_refused(self, client, refused, params):
        refused(client.get("/api/v1/audit", params=params), 422, "invalid_input", *params)


class TestControl:
    def test_disarming_is_kept_with_actor_and_reason(self, client):
        before = ControlState.model_validate_json(client.get("/api/v1/control").content)
        answer = client.put(
            "/api/v1/control",
            json={"disarmed": True, "reason": "maintenance"},
            headers={"X-Stabilizer-Actor": "ada"},
        )
        after = ControlState.model_validate_json(client.get("/api/v1/control").content)
        assert not before.disarmed
        assert (after.disarmed, after.reason, after.actor) == (True, "maintenance", "person:ada")
        assert ControlState.model_validate_json(answer.content) == after

    def test_disarmed_the_policy_proposes_nothing(self, client, job):
        client.put("/api/v1/control", json={"disarmed": True, "reason": "maintenance"})
        job.register(name="broken", policy=POLICY)
        job.send([1], [[float("nan"), 1.0]])
        assert client.get(f"{job.path}/commands").json() == []
        assert len(client.get(f"{job.path}/incidents").json()) == 1

    @pytest.mark.parametrize("message", [{"disarmed": True}, {"disarmed": "maybe", "reason": "x"}])
    def test_what_means_nothing_is_refused(self, client, refused, message):
        refused(client.put("/api/v1/control", json=message), 422, "invalid_input")


class TestSilences:
    def silence(self, client, **changes):
        message = {
            "rule": "loss_not_finite",
            "until": "2026-03-02T00:00:00Z",
            "reason": "known",
            **changes,
        }
        return client.post("/api/v1/silences", json=message)

    def test_a_silence_is_listed_until_it_is_removed(self, client):
        answer = self.silence(client)
        silence = Silence.model_validate_json(answer.content)
        assert answer.status_code == 201
        assert [found["id"] for found in client.get("/api/v1/silences").json()] == [silence.id]
        removed = client.delete(f"/api/v1/silences/{silence.id}", params={"reason": "fixed"})
        assert removed.status_code == 204
        assert client.get("/api/v1/silences").json() == []

    def test_one_whose_time_has_passed_is_not_in_force(self, client, clock):
        self.silence(client)
        clock.advance(86400)
        assert client.get("/api/v1/silences").json() == []

    @pytest.mark.parametrize(
        "changes",
        [
            {"until": None},
            {"until_step": 5},
            {"until": None, "until_step": 5},
            {"until": "2026-03-02T00:00:00"},
            {"rule": ""},
            {"reason": ""},
            {"reason": "  \n"},
            {"until": "9999-12-31T23:59:59-14:00"},
            {"until": "0001-01-01T00:00:00+14:00"},
        ],
        ids=[
            "no end",
            "two ends",
            "step without run",
            "no time zone",
            "no rule",
            "no reason",
            "blank reason",
            "beyond the calendar",
            "before the calendar",
        ],
    )
    def test_what_means_nothing_is_refused(self, client, refused, changes):
        refused(self.silence(client, **changes), 422, "invalid_input")

    def test_an_end_that_has_passed_is_refused(self, client, job, refused):
        refused(self.silence(client, until="2026-02-28T00:00:00Z"), 422, "invalid_input", "until")
        job.send([1, 2, 3])
        past = {"until": None, "until_step": 2, "run_id": job.run_id}
        refused(self.silence(client, **past), 422, "invalid_input", "until_step")
        assert client.get("/api/v1/silences").json() == []

    def test_of_an_unknown_run_it_is_refused(self, client, refused):
        refused(self.silence(client, run_id="nobody"), 404, "unknown_run")

    def test_removing_an_unknown_one_is_404(self, client, refused):
        refused(client.delete("/api/v1/silences/x", params={"reason": "x"}), 404, "unknown_silence")

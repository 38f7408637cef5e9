"""Rule files over HTTP: validated, compared, applied, listed."""

import pytest

from stabilizer.protocol.queries import RulesChange, RulesHistory
from stabilizer.rules.loader import default_rules

TEXT = """
rules:
  - name: high
    select: {metric: loss}
    detect: {threshold: {above: 9}}
    severity: notice
policy: {ladder: [pause], act_on: {}}
"""


@pytest.fixture(params=["run", "collector"])
def path(request, job):
    return f"{job.path}/rules" if request.param == "run" else "/api/v1/rules"


def test_put_lists_what_changes_and_get_lists_versions(client, job, path):
    body = {"text": TEXT, "reason": "ours"}
    tried = client.put(path, json={**body, "dry_run": True})
    change = RulesChange.model_validate_json(tried.content)
    assert (change.dry_run, change.added, change.num_runs) == (True, ("high",), 1)
    assert set(change.removed) == {rule.name for rule in default_rules().rules}
    made = RulesChange.model_validate_json(
        client.put(path, json=body, headers={"X-Stabilizer-Actor": "ada"}).content
    )
    assert (made.version, made.dry_run, made.hash) == (2, False, change.hash)
    assert client.get(f"{job.path}/rules").json()["text"] == TEXT
    history = RulesHistory.model_validate_json(client.get(f"{path}/versions").content)
    assert [(one.number, one.reason) for one in history.versions] == [(2, "ours"), (1, "")]
    assert "ada" in history.versions[0].actor


def test_an_invalid_file_is_refused_with_every_error(client, job, path, refused):
    text = TEXT.replace("above: 9", "above: high").replace("notice", "loud")
    answer = client.put(path, json={"text": text, "reason": "ours"})
    fields = ("rules.0.detect.threshold.above", "rules.0.severity")
    problem = refused(answer, 422, "invalid_rule", *fields)
    assert "rules:5: " in problem["detail"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"reason": "x"}, 422, "invalid_input"),
        ({"text": TEXT, "version": 1, "reason": "x"}, 422, "invalid_input"),
        ({"text": TEXT, "reason": ""}, 422, "invalid_input"),
        ({"text": "", "reason": "x"}, 422, "invalid_rule"),
        ({"version": 8, "reason": "x"}, 404, "unknown_version"),
    ],
)
def test_refusals(client, job, path, body, status, code):
    answer = client.put(path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_run_that_is_not_there(client, refused):
    for answer in (
        client.put("/api/v1/runs/x/rules", json={"text": TEXT, "reason": "x"}),
        client.get("/api/v1/runs/x/rules/versions"),
    ):
        refused(answer, 404, "unknown_run")

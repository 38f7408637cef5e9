"""A database of a released version migrates by itself; all of it is readable; its runs continue."""

import httpx
import pytest

from tests.compat.wire import Mapping, replay

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_every_endpoint_answers_as_before_and_the_rules_continue(
    recording, backend, request, serve
):
    database = request.getfixturevalue(f"{backend}_database")
    with serve(database) as url:
        assert replay(url, recording.load(f"reads_{backend}.json.gz"), Mapping(fixed=True)) == []
        with httpx.Client(base_url=f"{url}/api/v1", timeout=30, trust_env=False) as http:
            the_rules_continue(http)


def the_rules_continue(http):
    """The incident that was open is resolved by calm steps, and the next NaN opens another."""
    runs = http.get("/runs").json()["runs"]
    run = next(run for run in runs if run["name"] == "by hand")

    def report(sequence, steps, loss):
        frames = [{"step": step, "values": {"loss": loss, "grad_norm": 1.0}} for step in steps]
        body = {"attempt": 1, "sequence": sequence, "frames": frames}
        answer = http.post(f"/runs/{run['id']}/frames", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["accepted_sequence"] == sequence
        return http.get(f"/runs/{run['id']}/incidents").json()

    before = http.get(f"/runs/{run['id']}/incidents").json()
    assert run["open_incident_id"] == before[0]["id"]
    # The steps of a batch that was stored are not stored again.
    assert report(7, range(76, 90), 50.0) == before
    after = report(8, range(90, 160), 2.0)
    assert after[0]["id"] == before[0]["id"]
    assert after[0]["state"] == "resolved"
    newest = report(9, range(160, 165), "nan")[0]
    assert newest["id"] not in {incident["id"] for incident in before}
    assert newest["state"] != "resolved"
    firing = http.get(f"/runs/{run['id']}/alerts", params={"state": "firing"}).json()
    assert "loss_nonfinite" in {alert["rule"] for alert in firing}

"""A person steers a running job over the REST API, and every word of it is kept."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def at_step(collector, name, step, job, wait_until):
    def there():
        run = collector.run(name)
        return run if run is not None and run.step >= step else None

    return wait_until(there, f"{name} to reach step {step}", [job])


@pytest.fixture
def reach(collector, wait_until):
    return lambda name, step, job: at_step(collector, name, step, job, wait_until)


def test_every_command_is_carried_out_and_read_back(collector, start_job, reach):
    job = start_job("by-hand")
    run = reach("by-hand", 60, job)

    def carried_out(**parameters):
        answer = collector.order(run.id, parameters)
        assert answer.status_code == 201, answer.text
        command = collector.settled(answer.json()["id"], [job])
        assert command.state == "applied", command
        return command.result

    paused = carried_out(kind="pause")
    assert collector.run("by-hand").state == "paused"
    resumed = carried_out(kind="resume")
    assert resumed.applied_step == paused.applied_step

    cut = carried_out(kind="reduce_lr", factor=0.5)
    assert cut.read_back.lr_scale == 0.5
    assert all(rate > 0 for rate in cut.read_back.lr.values())

    checkpoint = carried_out(kind="checkpoint_now")
    assert Path(checkpoint.read_back.checkpoint_path).exists()

    back = carried_out(kind="rollback", to_step=50, skip_steps=3)
    assert back.read_back.step <= 50
    assert back.read_back.skipped_samples == 3 * run.global_batch
    assert back.read_back.lr_scale == 0.5  # a cut survives the rollback
    assert back.read_back.attempt == 2

    with collector.http as http:
        late = http.post(
            f"/runs/{run.id}/commands",
            json={"parameters": {"kind": "pause"}, "reason": "late", "attempt": 1},
        )
    assert late.status_code == 409

    carried_out(kind="stop")
    assert job.popen.wait(60) == 0
    assert collector.run("by-hand").state == "finished"
    with collector.http as http:
        entries = http.get(f"/runs/{run.id}/audit", params={"limit": 500}).json()["entries"]
        registered = http.get(f"/runs/{run.id}").json()["config"]
    assert registered["monitor"]["run"] == "by-hand"
    assert registered["training"]["steps"] == 100_000
    changes = [entry for entry in entries if entry["action"] == "command_changed"]
    assert len({entry["subject"] for entry in changes}) == 6
    assert all(entry["reason"] for entry in entries)


def test_a_proposal_waits_for_a_person_and_is_carried_out_once_approved(
    collector, start_job, reach, wait_until
):
    fault = ("faults.lr_restart.step=120", "faults.lr_restart.factor=30.0")
    job = start_job("proposal", *fault, steps=2000)
    run = reach("proposal", 60, job)

    def proposed():
        with collector.http as http:
            commands = http.get(f"/runs/{run.id}/commands").json()
        return next((command for command in commands if command["state"] == "proposed"), None)

    command = wait_until(proposed, "a proposal", [job])
    with collector.http as http:
        answer = http.post(f"/commands/{command['id']}/approve", json={"reason": "I agree"})
    assert answer.status_code == 200, answer.text
    settled = collector.settled(command["id"], [job])
    assert settled.state == "applied"
    assert settled.result.read_back is not None
    with collector.http as http:
        entries = http.get(f"/runs/{run.id}/audit", params={"limit": 500}).json()["entries"]
    mine = [entry for entry in entries if entry["subject"] == command["id"]]
    assert [entry["after"]["state"] for entry in mine][:2] == ["proposed", "pending"]
    assert mine[-1]["after"]["state"] == "applied"
    assert any(entry["actor"].startswith("person:") for entry in mine)


def test_a_job_outlives_its_collector_and_nothing_is_missing_afterwards(
    collector, start_job, reach
):
    job = start_job("outlives", steps=120)
    reach("outlives", 40, job)
    collector.stop()
    assert job.is_running
    collector.start_again()
    run = reach("outlives", 120, job)
    assert job.popen.wait(60) == 0
    run = collector.run("outlives")
    assert (run.state, run.attempt) == ("finished", 1)
    with collector.http as http:
        (series,) = http.get(f"/runs/{run.id}/series/data", params={"series": "loss"}).json()
    assert series["steps"] == list(range(1, 121))

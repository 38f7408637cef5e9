"""The whole loop in containers: a disturbed job is rolled back; its collector comes and goes."""

from itertools import pairwise

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

RUN, STEPS = "demo", 500
TRAINS_SECONDS = 900
GIB = 2**30


@pytest.fixture(scope="module")
def trained(stack):
    """The demo's job, from its start to its end, with the collector away for a while."""
    stack.up("job")
    yield stack
    stack.compose("rm", "--force", "--stop", "job", timeout=120)


@pytest.fixture
def find_run(ask):
    def find():
        runs = ask("/runs", name=RUN)["runs"]
        return runs[0] if runs else None

    return find


@pytest.fixture
def reach(stack, find_run):
    """Wait until the run has got to a step, or the job has ended."""

    def wait(step):
        def there():
            state = stack.state("job")
            assert state["Running"] or state["ExitCode"] == 0, stack.logs()
            run = find_run()
            return run is not None and (run["step"] >= step or not state["Running"])

        stack.wait_for(there, f"step {step}", TRAINS_SECONDS)
        return find_run()

    return wait


def test_a_disturbed_job_is_rolled_back_while_its_collector_is_restarted(
    trained, ask, find_run, reach
):
    stack = trained
    assert reach(60)["state"] == "running"
    stack.stop("collector")
    assert stack.state("collector")["ExitCode"] == 0
    assert stack.state("job")["Running"]
    stack.up("collector")

    reach(STEPS)
    assert stack.engine("wait", stack.container("job")["Id"], timeout=TRAINS_SECONDS) == "0\n"
    run = find_run()
    assert (run["state"], run["step"]) == ("finished", STEPS)

    commands = ask(f"/runs/{run['id']}/commands")
    rollbacks = [command for command in commands if command["parameters"]["kind"] == "rollback"]
    assert rollbacks
    for command in rollbacks:
        read_back = command["result"]["read_back"]
        assert command["state"] == "applied"
        assert read_back["step"] == command["parameters"]["target"]["step"]
        assert read_back["skipped_samples"] > 0
        assert all(rate > 0 for rate in read_back["lr"].values())

    entries = ask(f"/runs/{run['id']}/audit", limit=500)["entries"]
    for command in rollbacks:
        states = [entry["after"]["state"] for entry in entries if entry["subject"] == command["id"]]
        assert states[0] in ("proposed", "pending")
        assert states[-1] == "applied"

    assert_no_step_is_missing(ask, run["id"])


def assert_no_step_is_missing(ask, run_id):
    """Every attempt has its steps one by one, from where it began; the last one gets to the end."""
    run = ask(f"/runs/{run_id}")
    series = ask(f"/runs/{run_id}/series/data", series="loss")
    starts = {attempt["number"]: attempt["from_step"] for attempt in run["attempts"]}
    assert {one["attempt"] for one in series} == set(starts)
    for one in series:
        assert one["steps"][0] == starts[one["attempt"]] + 1
        assert all(after == before + 1 for before, after in pairwise(one["steps"]))
    assert series[-1]["steps"][-1] == STEPS


def test_snapshots_keep_to_a_quarter_of_what_the_container_may_use(stack, project):
    code = "from stabilizer.agent.control.snapshots import default_max_bytes as b; print(b())"
    options = ["run", "--rm", "--network=none", "--memory=2g", "--entrypoint=python"]
    said = stack.engine(*options, "stabilizer-test/trainer", "-c", code, timeout=120)
    assert int(said) == GIB // 2


def test_the_rollback_stands_on_the_page_of_the_run(trained, find_run, reach, browser, secrets):
    reach(STEPS)
    page = browser.new_page()
    page.goto(trained.address("dashboard", 8050) + f"/runs/{find_run()['id']}")
    page.get_by_label("Your name").fill("Ada")
    page.get_by_label("Token").fill("not-one-of-ours-not-one-of-ours")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("rejected this token")
    page.get_by_label("Token").fill(secrets.person)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name=RUN)).to_be_visible(timeout=30_000)
    expect(page.locator("#timeline")).to_contain_text("Applied: roll back to", timeout=30_000)
    expect(page.locator("#run-commands .command-card")).to_contain_text("verified")
    page.close()


def test_what_was_learned_survives_new_containers(trained, ask, find_run, reach):
    reach(STEPS)
    before = find_run()
    commands = ask(f"/runs/{before['id']}/commands")
    trained.down()
    assert set(trained.leftovers()) == {"volumes"}
    trained.up("postgres", "collector", "dashboard")
    assert find_run()["id"] == before["id"]
    assert ask(f"/runs/{before['id']}/commands") == commands
    assert_no_step_is_missing(ask, before["id"])

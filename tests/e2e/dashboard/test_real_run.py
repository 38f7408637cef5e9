"""A real training job that diverges, and a user who approves the rollback."""

import pytest
from playwright.sync_api import expect

from trainer.demo.story import policy_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

NETWORK = ("Failed to load resource", "WebSocket", "server did not respond")
PATIENCE = 180_000


@pytest.fixture
def stack(tmp_path, make_stack):
    with make_stack(tmp_path) as stack:
        yield stack


@pytest.fixture
def job(stack, corpus, tmp_path):
    """A job whose schedule restarts too high at step 120, in propose mode."""
    arguments = ["fit", "--data", str(corpus), "--steps", "2000", "--run", "real"]
    arguments += ["--collector", stack.url, "--mode", "propose", "--out", str(tmp_path / "out")]
    arguments += ["--policy", str(policy_file("idefics-tiny"))]
    arguments += ["--set", "faults.lr_restart.step=120", "--set", "faults.lr_restart.factor=30.0"]
    return stack.processes.start("job", "trainer", arguments)


@pytest.mark.complaints(*NETWORK)
def test_from_the_first_step_to_the_verified_command_over_a_restart_of_the_collector(
    stack, job, open_page, charts
):
    page = open_page("/")
    page.get_by_role("link", name="real").click(timeout=PATIENCE)
    expect(page.get_by_role("heading", name="real")).to_be_visible()
    charts.wait_for_step(page, 40)

    stack.stop_collector()
    expect(page.locator("#link-badge")).to_contain_text("collector not responding")
    stack.start_collector_again()
    expect(page.locator("#link-badge")).to_contain_text("live")

    card = page.locator("#run-proposals .command-card").first
    expect(card).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#run-incident")).to_contain_text("Incident 1")
    card.get_by_role("button", name="Approve").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("the loss rises with the rate")
    dialog.get_by_role("button", name="Approve", exact=True).click()
    expect(dialog).not_to_be_visible()
    expect(page.locator("#run-commands")).to_contain_text("verified", timeout=PATIENCE)
    expect(page.locator("#timeline")).to_contain_text("the loss rises with the rate")
    assert job.is_running

    steps = charts.steps(page)
    assert set(range(1, 120)) <= set(steps)  # nothing is missing from the time without a collector
    page.wait_for_function(
        "document.querySelector('#heatmap .js-plotly-plot')?.data?.some("
        "trace => trace.type === 'heatmap' && trace.z.length > 20)"
    )

"""Charts that could not be drawn: the page shows the error, and draws them later."""

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NETWORK = ("Failed to load resource", "WebSocket", "server did not respond")
ZOOM = (
    "window.Plotly.relayout(document.querySelector('#chart-loss .js-plotly-plot'),"
    " {'xaxis.range[0]': 100, 'xaxis.range[1]': 120})"
)
FIRST_STEP = (
    "document.querySelector('#chart-gradient .js-plotly-plot').data[0].x[0] === 100"
    " && document.querySelector('#chart-gradient .js-plotly-plot').data[0].x.length === 21"
)


@pytest.fixture
def stack(tmp_path, make_stack):
    with make_stack(tmp_path) as stack:
        yield stack


def long_run(stack):
    """A run with more steps than a chart has pixels, so that a zoom needs another request."""
    run = stack.feed("long")
    for _ in range(8):
        run.frames(250, layers=False)
    return run


@pytest.mark.complaints(*NETWORK)
def test_failed_zoom_is_reported_and_retried(stack, open_page, charts):
    run = long_run(stack)
    page = open_page(f"/runs/{run.run_id}", width=700)
    charts.wait_for_step(page, run.step)
    problem = page.locator("#charts-problem")
    expect(problem).to_be_empty()
    stack.stop_collector()
    expect(page.locator("#link-badge")).to_contain_text("collector not responding")
    page.evaluate(ZOOM)
    expect(problem).to_contain_text("not responding")
    stack.start_collector_again()
    page.wait_for_function(FIRST_STEP)
    expect(problem).to_be_empty()

"""Each page in a real browser, with runs that are reported over HTTP."""

import re

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def runs(stack):
    """A run under way, one that has ended, and many others."""
    running = stack.feed("vision-large", key="job-17")
    running.frames(300)
    running.snapshot(200, 250)
    ended = stack.feed("language-small")
    ended.frames(120, layers=False)
    ended.end()
    for number in range(120):
        other = stack.feed(f"sweep-{number:03d}")
        other.end("failed")
    return {"running": running, "ended": ended}


class TestRuns:
    def test_a_run_is_listed_with_what_matters(self, runs, open_page):
        page = open_page()
        page.get_by_placeholder("Name, key or id").fill("large")
        row = page.locator("tr", has_text="vision-large")
        expect(row).to_contain_text("running")
        expect(row).to_contain_text("propose")
        expect(row).to_contain_text("300")
        expect(row.locator("img.sparkline")).to_have_attribute("src", re.compile("^data:image/svg"))

    def test_a_run_is_found_among_many(self, runs, open_page):
        page = open_page()
        expect(page.locator("#runs-count")).to_have_text("50 of 122")
        page.get_by_placeholder("Name, key or id").fill("language")
        expect(page.locator("#runs-body tbody tr")).to_have_count(1)
        page.get_by_placeholder("Name, key or id").fill("job-17")
        expect(page.locator("#runs-body tbody tr")).to_contain_text("vision-large")
        page.get_by_placeholder("Name, key or id").fill(runs["running"].run_id[:8])
        expect(page.locator("#runs-body tbody tr")).to_contain_text("vision-large")
        page.get_by_placeholder("Name, key or id").fill("no such run")
        expect(page.get_by_role("heading", name="No matching runs")).to_be_visible()

    def test_more_are_shown_when_asked_for(self, runs, open_page):
        page = open_page()
        expect(page.locator("#runs-body tbody tr")).to_have_count(50)
        page.get_by_role("button", name="Show more").click()
        expect(page.locator("#runs-body tbody tr")).to_have_count(100)

    def test_a_new_step_changes_its_row_alone(self, runs, open_page):
        page = open_page()
        page.get_by_placeholder("Name, key or id").fill("la")
        expect(page.locator("#runs-count")).to_have_text("2")
        row = page.locator("tr", has_text="vision-large")
        other = page.locator("tr", has_text="language-small").element_handle()
        runs["running"].frames(1)
        expect(row).to_contain_text(str(runs["running"].step))
        assert other.evaluate("element => element.isConnected")


class TestRun:
    def test_it_shows_every_chart(self, runs, open_page, charts):
        page = open_page(f"/runs/{runs['running'].run_id}")
        expect(page.get_by_role("heading", name="vision-large")).to_be_visible()
        for chart in ("loss", "gradient", "rate", "z-loss", "entropy"):
            charts.wait_for_step(page, 300, f"chart-{chart}")
        page.wait_for_function(
            "document.querySelector('#heatmap .js-plotly-plot')?.data?.some("
            "trace => trace.type === 'heatmap' && trace.z.length === 32)"
        )

    def test_new_steps_come_by_themselves(self, runs, open_page, charts):
        page = open_page(f"/runs/{runs['running'].run_id}")
        charts.wait_for_step(page, runs["running"].step)
        before = runs["running"].step
        runs["running"].frames(5)
        charts.wait_for_step(page, before + 5)
        steps = charts.steps(page)
        assert steps == sorted(set(steps))
        expect(page.locator("#run-step")).to_have_text(str(before + 5))

    def test_any_series_can_be_picked(self, runs, open_page, charts):
        page = open_page(f"/runs/{runs['running'].run_id}")
        charts.wait_for_step(page, 300)
        page.get_by_placeholder("Add series (up to 8)").fill("step_seconds")
        page.get_by_role("option", name="step_seconds").click()
        charts.wait_for_step(page, 300, "chart-picked")

    def test_zooming_asks_for_finer_samples_and_moves_all_charts(
        self, runs, stack, open_page, charts
    ):
        long = stack.feed("long-run")
        for _ in range(20):
            long.frames(250, layers=False)
        page = open_page(f"/runs/{long.run_id}", width=900)
        charts.wait_for_step(page, 5000)
        assert len(charts.steps(page)) < 1500
        page.evaluate(
            "window.Plotly.relayout(document.querySelector('#chart-loss .js-plotly-plot'),"
            " {'xaxis.range[0]': 1000, 'xaxis.range[1]': 1200})"
        )
        page.wait_for_function(
            "() => { const x = document.querySelector('#chart-gradient .js-plotly-plot').data[0].x;"
            " return x.length === 201 && x[0] === 1000 && x[200] === 1200; }"
        )

    def test_a_lone_spike_and_a_nan_survive_the_thinning(self, stack, open_page, charts):
        run = stack.feed("spiky")
        run.frames(1000, layers=False)
        run.frames(1, layers=False, loss=lambda step: 90.0)
        run.frames(1000, layers=False)
        run.frames(1, layers=False, loss=lambda step: float("nan"))
        run.frames(998, layers=False)
        page = open_page(f"/runs/{run.run_id}", width=500)
        charts.wait_for_step(page, 1001)
        charts.wait_for_step(page, 2002)


class TestWaysThatLeadNowhere:
    def test_an_address_typed_wrong_leads_on(self, open_page):
        page = open_page("/rnus")
        expect(page.get_by_role("heading", name="Page not found")).to_be_visible()
        page.get_by_role("link", name="All runs").click()
        expect(page.get_by_role("heading", name="Runs")).to_be_visible()

    def test_unknown_run_shows_an_error_page(self, open_page):
        page = open_page("/runs/0123456789abcdef")
        expect(page.get_by_role("heading", name="Run not found")).to_be_visible()

    def test_deleted_run_shows_an_error_page(self, stack, open_page):
        run = stack.feed("short-lived")
        run.frames(5)
        run.end()
        page = open_page(f"/runs/{run.run_id}")
        expect(page.get_by_role("heading", name="short-lived")).to_be_visible()
        gone = run.http.delete(f"/runs/{run.run_id}", params={"reason": "done with it"})
        assert gone.status_code == 204
        expect(page.get_by_role("heading", name="Run not found")).to_be_visible()


class TestNarrow:
    @pytest.mark.parametrize("path", ["/", "/control", "run"])
    def test_nothing_has_to_be_scrolled_sideways(self, runs, open_page, path):
        path = f"/runs/{runs['running'].run_id}" if path == "run" else path
        page = open_page(path, width=390)
        expect(page.locator("main").first).to_contain_text(
            {"/": "sweep-119", "/control": "Audit log"}.get(path, "vision-large")
        )
        for width in (390, 768, 2560):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_function(f"window.innerWidth === {width}")
            page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")
            # Overflow in the fixed header does not widen the page: it would be clipped.
            head = "Array.from(document.querySelectorAll('.shell-header *'))"
            page.wait_for_function(
                f"{head}.every((one) => one.getBoundingClientRect().right <= window.innerWidth)"
            )

    def test_dark_is_dark(self, runs, open_page):
        page = open_page("/", scheme="dark")
        expect(page.locator("html")).to_have_attribute("data-mantine-color-scheme", "dark")
        page.get_by_label("Switch between light and dark").click()
        expect(page.locator("html")).to_have_attribute("data-mantine-color-scheme", "light")


def test_the_api_documentation_needs_no_other_host(stack, open_page):
    page = open_page("/docs", url=stack.url)
    expect(page.get_by_text("Register a job")).to_be_visible(timeout=30_000)

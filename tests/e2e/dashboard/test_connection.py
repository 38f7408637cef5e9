"""Loss and return of collector and dashboard; sign-in and expired sessions."""

import pytest
from playwright.sync_api import expect

from stabilizer.settings import MIN_TOKEN_LENGTH

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TOKEN = "t" * MIN_TOKEN_LENGTH
NETWORK = ("Failed to load resource", "WebSocket", "server did not respond")


@pytest.fixture
def stack(tmp_path, make_stack):
    with make_stack(tmp_path) as stack:
        yield stack


@pytest.mark.complaints(*NETWORK)
def test_page_recovers_when_the_collector_returns(stack, open_page, charts):
    run = stack.feed("patient")
    run.frames(50)
    page = open_page(f"/runs/{run.run_id}")
    charts.wait_for_step(page, 50)
    expect(page.locator("#link-badge")).to_contain_text("live")
    stack.stop_collector()
    expect(page.locator("#link-badge")).to_contain_text("collector not responding")
    expect(page.get_by_text("Training continues")).to_be_visible()
    assert 50 in charts.steps(page)  # what was known stays
    stack.start_collector_again()
    expect(page.locator("#link-badge")).to_contain_text("live")
    expect(page.get_by_text("Training continues")).to_be_hidden()
    run.frames(10)
    charts.wait_for_step(page, 60)
    assert charts.steps(page) == sorted(set(charts.steps(page)))


@pytest.mark.complaints(*NETWORK)
def test_a_page_opened_while_the_collector_is_away_fills_when_it_is_back(stack, open_page):
    run = stack.feed("late")
    run.frames(20)
    stack.stop_collector()
    page = open_page(f"/runs/{run.run_id}")
    expect(page.get_by_role("heading", name="Collector not responding")).to_be_visible()
    stack.start_collector_again()
    expect(page.get_by_role("heading", name="late")).to_be_visible()


@pytest.mark.complaints(*NETWORK)
def test_the_dashboard_itself_restarts_and_open_pages_go_on(stack, open_page, charts):
    run = stack.feed("steady")
    run.frames(20)
    page = open_page(f"/runs/{run.run_id}")
    charts.wait_for_step(page, 20)
    stack.dashboard.popen.terminate()
    assert stack.dashboard.popen.wait(20) == 0
    run.frames(5)
    stack.dashboard, _ = stack.start_dashboard(stack.page_url.rsplit(":", 1)[1])
    charts.wait_for_step(page, 25)


LOST = "Connection to the dashboard lost"
CUT = """
window.SharedWorker = class extends SharedWorker {
    constructor(...given) { super(...given); window.line = this.port; }
};
"""


@pytest.fixture
def open_timed(stack, open_page):
    """Open a page whose time a test can let pass."""

    def open_(path, before=""):
        page = open_page("/healthz")
        page.clock.install()
        page.add_init_script(before)
        page.goto(stack.page_url + path)
        return page

    return open_


@pytest.mark.complaints(*NETWORK)
def test_a_page_that_has_lost_the_dashboard_says_so_until_it_is_back(stack, open_timed, charts):
    run = stack.feed("alone")
    run.frames(20)
    page = open_timed(f"/runs/{run.run_id}")
    charts.wait_for_step(page, 20)
    expect(page.locator("#link-badge")).to_contain_text("live")
    expect(page.get_by_text(LOST)).to_be_hidden()
    stack.dashboard.popen.terminate()
    assert stack.dashboard.popen.wait(20) == 0
    page.clock.run_for(75_000)
    expect(page.get_by_text(LOST)).to_be_visible()
    expect(page.get_by_text("dashboard not responding")).to_be_visible()
    expect(page.locator("#link-badge")).to_be_hidden()
    assert 20 in charts.steps(page)  # what was known stays
    run.frames(5)
    stack.dashboard, _ = stack.start_dashboard(stack.page_url.rsplit(":", 1)[1])
    charts.wait_for_step(page, 25)
    expect(page.get_by_text(LOST)).to_be_hidden()
    expect(page.locator("#link-badge")).to_contain_text("live")


def test_page_without_heartbeats_reloads(stack, open_timed, charts):
    run = stack.feed("deaf")
    run.frames(20)
    page = open_timed(f"/runs/{run.run_id}", CUT)
    charts.wait_for_step(page, 20)
    expect(page.locator("#link-badge")).to_contain_text("live")
    page.evaluate("window.line.close()")
    run.frames(5)
    with page.expect_navigation():
        page.clock.run_for(75_000)
    charts.wait_for_step(page, 25)
    expect(page.locator("#link-badge")).to_contain_text("live")


@pytest.mark.complaints(*NETWORK)
def test_a_browser_without_shared_workers_asks_by_itself(stack, open_timed, charts):
    run = stack.feed("mobile")
    run.frames(20)
    page = open_timed(f"/runs/{run.run_id}", "delete window.SharedWorker")
    charts.wait_for_step(page, 20)
    expect(page.locator("#link-badge")).to_contain_text("refreshes every 5 s")
    run.frames(5)
    charts.wait_for_step(page, 25)
    stack.stop_collector()
    expect(page.locator("#link-badge")).to_contain_text("collector not responding")
    stack.start_collector_again()
    expect(page.locator("#link-badge")).to_contain_text("refreshes every 5 s")
    expect(page.get_by_text(LOST)).to_be_hidden()


class TestSigningIn:
    @pytest.fixture
    def stack(self, tmp_path, make_stack):
        (tmp_path / "token").write_text(TOKEN + "\n")
        arguments = ("--token-file", str(tmp_path / "token"))
        with make_stack(tmp_path, arguments) as stack:
            stack.token = TOKEN
            yield stack

    def sign_in(self, page, token, name="Ada"):
        page.get_by_label("Your name").fill(name)
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Sign in").click()

    @pytest.mark.complaints(*NETWORK)
    def test_a_wrong_token_leads_to_the_right_one_and_back(self, stack, open_page):
        run = stack.feed("guarded")
        run.frames(10)
        page = open_page(f"/runs/{run.run_id}")
        expect(page.get_by_role("heading", name="Sign in to continue")).to_be_visible()
        page.locator("#run-problem").get_by_role("link", name="Sign in").click()
        self.sign_in(page, "w" * MIN_TOKEN_LENGTH)
        expect(page.get_by_role("alert")).to_contain_text("rejected this token")
        self.sign_in(page, TOKEN)
        expect(page.get_by_role("heading", name="guarded")).to_be_visible()
        page.get_by_role("button", name="Mode").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("observe").check()
        dialog.get_by_label("Reason").fill("Ada was here")
        dialog.get_by_role("button", name="Change mode").click()
        expect(page.locator("#run-header")).to_contain_text("observe")
        entries = run.http.get(f"/runs/{run.run_id}/audit", params={"limit": 100}).json()
        assert entries["entries"][-1]["actor"] == "person:Ada"

    @pytest.mark.complaints(*NETWORK)
    def test_expired_session_of_an_open_page_has_a_banner(self, stack, open_page, browser):
        run = stack.feed("watched")
        run.frames(10)
        page = open_page(f"/signin?next=/runs/{run.run_id}")
        self.sign_in(page, TOKEN)
        expect(page.get_by_role("heading", name="watched")).to_be_visible()
        page.request.post(stack.page_url + "/signout")  # in another tab of this browser
        expect(page.locator("#link-badge")).to_contain_text("session expired")
        expect(page.get_by_text("Your session has expired")).to_be_visible()
        page.locator("#banner").get_by_role("link", name="Sign in").click()
        expect(page.get_by_text("Your session has expired. Sign in to continue")).to_be_visible()

    @pytest.mark.complaints(*NETWORK)
    @pytest.mark.parametrize("ends", ["signed out", "dashboard restarted"])
    def test_signing_in_again_heals_every_tab_of_the_browser(self, stack, open_page, ends):
        run = stack.feed("shared")
        run.frames(10)
        first = open_page(f"/signin?next=/runs/{run.run_id}")
        self.sign_in(first, TOKEN)
        second = first.context.new_page()
        second.goto(f"{stack.page_url}/runs/{run.run_id}")
        pages = (first, second)
        for page in pages:
            expect(page.locator("#link-badge")).to_contain_text("live")
        if ends == "signed out":
            first.request.post(stack.page_url + "/signout")
        else:  # which ends all sessions; the tabs reconnect without one
            stack.dashboard.popen.terminate()
            assert stack.dashboard.popen.wait(20) == 0
            stack.dashboard, _ = stack.start_dashboard(stack.page_url.rsplit(":", 1)[1])
        for page in pages:
            expect(page.locator("#link-badge")).to_contain_text("session expired")
        first.locator("#banner").get_by_role("link", name="Sign in").click()
        self.sign_in(first, TOKEN)
        expect(first.get_by_role("heading", name="shared")).to_be_visible()
        for page in pages:
            expect(page.locator("#link-badge")).to_contain_text("live")
            expect(page.get_by_text("Your session has expired")).to_be_hidden()

"""A collector, a dashboard and a browser, each a process of its own."""

import re
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.browser import launched
from tests.e2e.dashboard.feed import Feed
from tests.forked import ForkedProcesses

SECONDS = 90.0


# Bounds, not waits: other tests run at the same time.
expect.set_options(timeout=60_000)


class Stack:
    """A running collector and a running dashboard."""

    def __init__(self, processes, folder, arguments=()):
        self.processes, self.folder = processes, folder
        self.token = None
        self.feeds = []
        self.arguments = list(arguments)
        self.collector, self.url = self.start_collector("0")
        self.dashboard, self.page_url = self.start_dashboard()

    def start_collector(self, port):
        database = f"sqlite:///{self.folder}/stabilizer.db"
        return self._start(
            "collector",
            "stabilizer",
            ["serve", "--port", port, "--database", database, *self.arguments],
        )

    def start_dashboard(self, port="0", *arguments):
        return self._start(
            "dashboard", "dashboard", ["--port", port, "--collector", self.url, *arguments]
        )

    def _start(self, name, module, arguments):
        ready = self.folder / f"{name}.url"
        ready.unlink(missing_ok=True)
        process = self.processes.start(name, module, [*arguments, "--ready-file", str(ready)])
        return process, self.processes.wait_for_file(process, ready, SECONDS)

    def stop_collector(self):
        self.collector.popen.terminate()
        assert self.collector.popen.wait(20) == 0

    def start_collector_again(self):
        self.collector, self.url = self.start_collector(self.url.rsplit(":", 1)[1])

    def feed(self, name, **options):
        """Register a run that the test reports by itself."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        feed = Feed(self.url, name, headers=headers, **options)
        self.feeds.append(feed)
        return feed

    def close(self):
        for feed in self.feeds:
            feed.http.close()


@pytest.fixture(scope="module")
def browser():
    """Open for the tests of one file: those of another may run event loops."""
    with launched() as browser:
        yield browser


@contextmanager
def running_stack(folder, arguments=()):
    environment = {
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "STABILIZER_STRICT": "1",
        "STABILIZER_SPOOL_DIRECTORY": str(folder / "spool"),
    }
    with (
        ForkedProcesses(folder / "logs", environment) as processes,
        closing(Stack(processes, folder, arguments)) as stack,
    ):
        yield stack


@pytest.fixture
def make_stack():
    """A stack of one's own: `with make_stack(folder, arguments of the collector) as stack`."""
    return running_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """The stack that the tests of a file share."""
    with running_stack(tmp_path_factory.mktemp("stack")) as started:
        yield started


@pytest.fixture
def open_page(browser, stack, request):
    """Open a page; complaints of the browser and foreign requests fail the test at its end."""
    contexts, complaints = [], []

    def open_(path="/", width=1440, height=900, url=None, scheme="light") -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: _note(message, complaints))
        page.on("request", lambda request: _note_foreign(request.url, complaints))
        page.goto((url or stack.page_url) + path)
        return page

    yield open_
    for context in contexts:
        context.close()
    allowed = request.node.get_closest_marker("complaints")
    known = allowed.args if allowed else ()
    left = [one for one in complaints if not any(re.search(pattern, one) for pattern in known)]
    assert left == []


def _note(message, complaints):
    if message.type == "error":
        complaints.append(message.text)


def _note_foreign(url, complaints):
    """Nothing that we serve loads anything from elsewhere."""
    if urlsplit(url).hostname not in {"127.0.0.1", "localhost", None}:
        complaints.append(f"loads {url}")


def chart_steps(page, chart="chart-loss", trace=0):
    """Steps that a chart draws."""
    return page.evaluate(
        "([id, trace]) => { const plot = document.querySelector(`#${id} .js-plotly-plot`);"
        " return plot && plot.data && plot.data[trace] ? [...plot.data[trace].x] : []; }",
        [chart, trace],
    )


def wait_for_step(page, step, chart="chart-loss"):
    """Wait until a chart draws a step."""
    page.wait_for_function(
        "([id, step]) => { const plot = document.querySelector(`#${id} .js-plotly-plot`);"
        " return plot && plot.data && plot.data[0] && plot.data[0].x.includes(step); }",
        arg=[chart, step],
        timeout=60_000,
    )


@pytest.fixture
def charts():
    class Charts:
        steps = staticmethod(chart_steps)
        wait_for_step = staticmethod(wait_for_step)

    return Charts

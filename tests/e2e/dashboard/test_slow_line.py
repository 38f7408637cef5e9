"""Updates that arrive faster than responses: a page on a slow connection still shows them."""

import asyncio
import threading
import time

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DELAY_SECONDS = 0.5
WAIT_SECONDS = 60


class SlowLine(threading.Thread):
    """A line to a collector on which every question takes its time; events come at once."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.port = int(url.rsplit(":", 1)[1])
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.url = ""

    def __enter__(self):
        self.start()
        assert self.ready.wait(WAIT_SECONDS)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.over.set)
        self.join(WAIT_SECONDS)

    def run(self):
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self.serve())

    async def serve(self):
        self.over = asyncio.Event()
        server = await asyncio.start_server(self.connect, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self.ready.set()
        await self.over.wait()
        server.close()

    async def connect(self, reader, writer):
        there = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.gather(
            self.pass_on(reader, there[1], DELAY_SECONDS), self.pass_on(there[0], writer, 0.0)
        )

    async def pass_on(self, reader, writer, delay):
        try:
            while data := await reader.read(2**16):
                await asyncio.sleep(delay)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


def report_until(run, is_shown):
    """Report step after step without a pause until the page shows them."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_shown():
        assert time.monotonic() < deadline, "the page shows nothing while the job reports"
        run.frames(1)


def test_a_page_follows_a_job_that_reports_faster_than_the_collector_answers(
    stack, open_page, charts
):
    run = stack.feed("busy")
    run.frames(50)
    with SlowLine(stack.url) as line:
        _, url = stack.start_dashboard("0", "--collector", line.url)
        page = open_page(f"/runs/{run.run_id}", url=url)
        listing = open_page("/", url=url)
        charts.wait_for_step(page, 50)
        row = listing.get_by_role("row", name="busy")
        row.wait_for()
        for _ in range(2):
            begin = run.step
            report_until(run, lambda begin=begin: charts.steps(page)[-1] > begin)
            report_until(run, lambda begin=begin: f"{begin:,}" not in row.inner_text())
        for opened in (page, listing):
            opened.close()

"""Over real sockets: uvicorn in this process, and `stabilizer serve` as a user starts it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from stabilizer.collector.services.change_feed import Change
from stabilizer.protocol.message import PROTOCOL_VERSION

REGISTRATION = {"protocol_version": PROTOCOL_VERSION, "name": "real", "key": "1"}
TOKEN = "t" * 43


def poll(url, run_id, answers, wait=60):
    """A paused job in a thread of its own; its answer goes into `answers`."""

    def ask():
        params = {"attempt": 1, "wait": wait}
        with httpx.Client(base_url=url, timeout=90, trust_env=False) as client:
            answers.append(client.get(f"/api/v1/runs/{run_id}/commands/next", params=params))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


class TestRealSocket:
    def test_a_chunked_body_beyond_the_limit_is_refused(self, server):
        run_id = server.run()
        chunks = (b"x" * 2**16 for _ in range(32))
        answer = server.client.post(
            f"/api/v1/runs/{run_id}/frames",
            content=chunks,
            headers={"content-type": "application/vnd.stabilizer.frames"},
        )
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert server.client.get("/healthz").status_code == 200

    def test_a_body_that_breaks_off_leaves_the_server_well(self, server):
        run_id = server.run()
        with socket.create_connection(server.listener.getsockname()[:2]) as raw:
            raw.sendall(
                f"POST /api/v1/runs/{run_id}/frames HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{".encode()
            )
        assert server.client.get(f"/api/v1/runs/{run_id}").status_code == 200

    def test_what_is_not_http_is_refused(self, server):
        with socket.create_connection(server.listener.getsockname()[:2], timeout=20) as raw:
            raw.sendall(b"\x00\x01\x02 not http\r\n\r\n")
            assert b"400" in raw.recv(100)
        assert server.client.get("/healthz").status_code == 200


class TestLongPoll:
    def test_a_new_command_wakes_it_at_once(self, server):
        run_id, answers = server.run(), []
        thread = poll(server.url, run_id, answers)
        server.wait_for_polls(1)
        began = time.monotonic()
        message = {"parameters": {"kind": "resume"}, "reason": "go on"}
        sent = server.client.post(f"/api/v1/runs/{run_id}/commands", json=message).json()
        thread.join(20)
        assert [command["id"] for command in answers[0].json()["commands"]] == [sent["id"]]
        assert time.monotonic() - began < 10  # of the 60 it would have waited

    def test_the_end_of_the_server_answers_it(self, server):
        run_id, answers = server.run(), []
        threads = [poll(server.url, run_id, answers) for _ in range(5)]
        server.wait_for_polls(5)
        began = time.monotonic()
        server.stop()
        for thread in threads:
            thread.join(20)
        assert [answer.status_code for answer in answers] == [200] * 5
        assert time.monotonic() - began < 10

    def test_to_a_client_that_hung_up_nothing_is_delivered(self, server):
        run_id = server.run()
        path = f"/api/v1/runs/{run_id}/commands/next?attempt=1&wait=60"
        with socket.create_connection(server.listener.getsockname()[:2]) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            server.wait_for_polls(1)
        server.wait_for_polls(0)
        message = {"parameters": {"kind": "resume"}, "reason": "go on"}
        sent = server.client.post(f"/api/v1/runs/{run_id}/commands", json=message).json()
        found = server.client.get(f"/api/v1/commands/{sent['id']}").json()
        assert found["state"] == "pending"

    def test_a_hundred_paused_jobs_leave_the_server_free(self, server):
        run_id = server.run()

        async def scenario():
            limits = httpx.Limits(max_connections=200)
            async with httpx.AsyncClient(
                base_url=server.url, timeout=90, trust_env=False, limits=limits
            ) as client:
                path = f"/api/v1/runs/{run_id}/commands/next"
                params = {"attempt": 1, "wait": 60}
                paused = [asyncio.create_task(client.get(path, params=params)) for _ in range(100)]
                await asyncio.to_thread(server.wait_for_polls, 100)
                other = await client.get(f"/api/v1/runs/{run_id}")  # needs a thread of the pool
                server.feed.notify(Change(run_id=run_id, wakes_job=True))
                message = {"parameters": {"kind": "resume"}, "reason": "go on"}
                await client.post(f"/api/v1/runs/{run_id}/commands", json=message)
                first, _ = await asyncio.wait(paused, return_when=asyncio.FIRST_COMPLETED)
                return other, next(iter(first)).result(), paused, server.stop()

        other, answer, _, _ = asyncio.run(scenario())
        assert other.status_code == 200
        assert answer.json()["commands"][0]["parameters"]["kind"] == "resume"


class Serve:
    """`stabilizer serve` as a process."""

    def __init__(self, folder, *arguments, environment=None):
        self.ready = folder / "ready"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stabilizer", "serve", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "STABILIZER_TOKENS": "", **(environment or {})},
        )

    def wait_until_ready(self):
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return line.removeprefix("listening on ").strip()

    def end(self, number):
        self.process.send_signal(number)
        return self.process.communicate(timeout=20)


@pytest.fixture
def serve(tmp_path):
    started = []

    def start(*arguments, **options):
        started.append(Serve(tmp_path, *arguments, **options))
        return started[-1]

    yield start
    for serve in started:
        if serve.process.poll() is None:
            serve.process.kill()
        serve.process.communicate()


class TestServe:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_it_says_where_serves_and_ends_orderly(self, serve, tmp_path, number):
        ready = tmp_path / "ready"
        process = serve("--port", 0, "--database", "sqlite:///a.db", "--ready-file", ready)
        url = process.wait_until_ready()
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
        answers = []
        run_id = httpx.post(f"{url}/api/v1/runs", json=REGISTRATION, trust_env=False).json()
        thread = poll(url, run_id["run_id"], answers)
        while "stabilizer_long_polls 1.0" not in httpx.get(f"{url}/metrics", trust_env=False).text:
            os.sched_yield()
        began = time.monotonic()
        process.end(number)
        thread.join(20)
        assert process.process.returncode == 0
        assert answers[0].status_code == 200
        assert time.monotonic() - began < 10
        assert ready.read_text().strip() == url

    def test_what_was_stored_is_there_after_a_restart(self, serve):
        first = serve("--port", 0, "--database", "sqlite:///a.db")
        url = first.wait_until_ready()
        httpx.post(f"{url}/api/v1/runs", json=REGISTRATION, trust_env=False)
        first.end(signal.SIGTERM)
        second = serve("--port", 0, "--database", "sqlite:///a.db")
        url = second.wait_until_ready()
        assert httpx.get(f"{url}/api/v1/runs", trust_env=False).json()["total"] == 1

    def test_beyond_loopback_with_a_token_it_asks_for_it(self, serve, tmp_path):
        (tmp_path / "tokens").write_text(TOKEN + "\n")
        process = serve("--host", "0.0.0.0", "--port", 0, "--token-file", "tokens")
        url = process.wait_until_ready().replace("0.0.0.0", "127.0.0.1")
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{url}/api/v1/runs", trust_env=False).status_code == 401
        assert httpx.get(f"{url}/api/v1/runs", headers=headers, trust_env=False).status_code == 200
        _, errors = process.end(signal.SIGTERM)
        assert TOKEN not in errors

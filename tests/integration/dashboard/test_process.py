"""`python -m dashboard` as a user starts it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

ROOT = Path(__file__).parents[3]
WAIT_SECONDS = 60


@pytest.fixture
def start():
    """Start dashboards with an environment of their own."""
    started = []

    def run(*arguments, **environment):
        clean = {name: value for name, value in os.environ.items() if "DASHBOARD_" not in name}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "dashboard", *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=clean | environment,
            )
        )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ask_for_news(socket, callbacks):
    """Do what a page does when its WebSocket is open, and wait for the first question back."""
    (callback,) = [each for each in callbacks if each.get("websocket")]
    payload = {"output": callback["output"], "outputs": [], "inputs": [], "changedPropIds": []}
    request = {"type": "callback_request", "rendererId": "tab", "requestId": "1"}
    socket.send(json.dumps({**request, "payload": payload}))
    assert "get_props_request" in socket.recv(WAIT_SECONDS)


def test_it_says_where_serves_and_ends_orderly_also_while_pages_are_open(
    start, collector, tmp_path
):
    ready = tmp_path / "ready"
    process = start("--port", 0, "--ready-file", ready, DASHBOARD_COLLECTOR_URL=collector.url)
    line = process.stdout.readline()
    assert line.startswith("dashboard on http://127.0.0.1:"), process.communicate()[1]
    url = line.removeprefix("dashboard on ").strip()
    assert ready.read_text().strip() == url
    with httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert "<title>Stabilizer</title>" in client.get("/").text
        assert client.get("/", headers={"host": "evil.example"}).status_code == 421
        page = url.replace("http", "ws", 1) + "/_dash-ws-callback"
        with connect(page, origin=url, proxy=None) as socket:
            ask_for_news(socket, client.get("/_dash-dependencies").json())
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, output) == (0, "")
    assert "Traceback" not in errors


def test_no_message_or_body_of_anybody_takes_much_memory(start, collector):
    process = start("--port", 0, DASHBOARD_COLLECTOR_URL=collector.url)
    url = process.stdout.readline().removeprefix("dashboard on ").strip()
    with httpx.Client(base_url=url, trust_env=False) as client:
        pieces = (b"[" * 2**16 for _ in range(17))  # as many as are refused, and one to spare
        assert client.post("/_dash-update-component", content=pieces).status_code == 413
        page = url.replace("http", "ws", 1) + "/_dash-ws-callback"
        callbacks = client.get("/_dash-dependencies").json()
        with connect(page, origin=url, proxy=None) as socket:
            ask_for_news(socket, callbacks)
            socket.send('{"type": "heartbeat", "more": "' + "x" * 2**16 + '"}')
            with pytest.raises(ConnectionClosedError) as closed:
                list(socket)
        assert closed.value.rcvd.code == 1009  # message too big
        with connect(page, origin=url, proxy=None) as socket:
            ask_for_news(socket, callbacks)

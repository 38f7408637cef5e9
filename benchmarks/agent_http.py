"""What posting costs the job: our transport against client libraries, beside a training loop.

    OMP_NUM_THREADS=1 python benchmarks/agent_http.py [--rounds 6] [--steps 25]

A thread posts a batch of one step (2,000 values) after every step of a small model, to a server in
its own process on loopback. The clients take turns within one run. What counts is the CPU time of
the posting thread, which other load on the machine changes least, as a ratio to our transport and
as the share of a core at ten posts a second, the most that the agent makes. Beside that: the CPU
time of importing each client, and how long it waits for an answer that takes two seconds to arrive
byte by byte when its timeout is half a second.
"""

from __future__ import annotations

import argparse
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import httpx
import httpx2
import numpy as np
import requests
import torch
import urllib3
from rich.console import Console
from rich.table import Table
from torch import nn

from stabilizer.agent.telemetry.http import Endpoint, HttpRequest, HttpTransport
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.errors import StabilizerError
from stabilizer.protocol.batches import BatchAnswer, BatchHeader, SamplingPlan
from stabilizer.protocol.frames import CONTENT_TYPE, FrameBlock, encode_batch
from stabilizer.protocol.series import Catalog

WIDTH = 2000
TIMEOUT_SECONDS = 10.0
SHORT_TIMEOUT_SECONDS = 0.5
DRIP_SECONDS = 2.0
PATH = "/api/v1/runs/r/frames"
TOKEN = "benchmark"
HEADERS = {"Content-Type": CONTENT_TYPE, "Authorization": f"Bearer {TOKEN}"}
IMPORTS = {
    "ours": "http.client, ssl, urllib.request, ipaddress",
    "urllib3": "urllib3",
    "httpx": "httpx",
    "httpx2": "httpx2",
    "requests": "requests",
}

Post = Callable[[bytes], None]


def serve(is_dripping: bool) -> None:
    """Print a port; answer every request on it, or send its answer byte by byte."""
    body = BatchAnswer(attempt=1, accepted_sequence=0, plan=SamplingPlan()).model_dump_json()
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        work = drip if is_dripping else answer_all
        threading.Thread(target=work, args=(connection, answer), daemon=True).start()


def answer_all(connection: socket.socket, answer: bytes) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as stream:
        while (line := stream.readline()) != b"":
            length = 0
            while (line := stream.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            stream.read(length)
            connection.sendall(answer)


def drip(connection: socket.socket, answer: bytes) -> None:
    with connection:
        try:
            for number in range(len(answer)):
                connection.sendall(answer[number : number + 1])
                time.sleep(DRIP_SECONDS / len(answer))
            connection.recv(2**20)
        except OSError:
            pass  # the client does not wait any longer


def start_server(*options: str) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, __file__, "--serve", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def make_clients(port: int, timeout: float) -> dict[str, Post]:
    """Return each client as a function that posts a body and reads the answer."""
    url = f"http://127.0.0.1:{port}"
    transport = HttpTransport(Endpoint.parse(url), TOKEN, ReporterSettings())
    pool = urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=1)
    client = httpx.Client(headers=HEADERS, timeout=timeout, trust_env=False)
    client2 = httpx2.Client(headers=HEADERS, timeout=timeout, trust_env=False)
    session = requests.Session()
    session.trust_env = False
    session.headers.update(HEADERS)

    def ours(body: bytes) -> None:
        transport.request(
            HttpRequest(
                method="POST",
                path=PATH,
                body=body,
                content_type=CONTENT_TYPE,
                timeout_seconds=timeout,
            )
        )

    def by_urllib3(body: bytes) -> None:
        wait = urllib3.Timeout(total=timeout)
        pool.urlopen("POST", PATH, body, HEADERS, retries=False, redirect=False, timeout=wait)

    def by_httpx(body: bytes) -> None:
        client.post(url + PATH, content=body)

    def by_httpx2(body: bytes) -> None:
        client2.post(url + PATH, content=body)

    def by_requests(body: bytes) -> None:
        session.post(url + PATH, body, timeout=timeout, allow_redirects=False)

    return {
        "ours": ours,
        "urllib3": by_urllib3,
        "httpx": by_httpx,
        "httpx2": by_httpx2,
        "requests": by_requests,
    }


class Poster:
    """A thread that posts a batch whenever training has finished a step."""

    def __init__(self, post: Post, body: bytes) -> None:
        self._post = post
        self._body = body
        self._steps: queue.SimpleQueue[threading.Event | None] = queue.SimpleQueue()
        self.cpu_seconds = 0.0
        self.posts = 0
        threading.Thread(target=self._run, daemon=True).start()

    def step(self) -> None:
        """Ask for one post."""
        self._steps.put(None)

    def finish(self) -> None:
        """Wait until everything is posted."""
        done = threading.Event()
        self._steps.put(done)
        done.wait()

    def _run(self) -> None:
        while True:
            done = self._steps.get()
            if done is not None:
                done.set()
                continue
            start = time.thread_time()
            self._post(self._body)
            self.cpu_seconds += time.thread_time() - start
            self.posts += 1


class Training:
    """A model whose step is mostly Python, as far as the GIL is concerned."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = [layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.GELU())]
        self._model = nn.Sequential(*layers)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), foreach=False)
        self._batch = torch.randn(64, 64)

    def step(self) -> None:
        """Train one step."""
        self._optimizer.zero_grad()
        self._model(self._batch).square().mean().backward()
        self._optimizer.step()


def make_body() -> bytes:
    catalog = Catalog.of([f'activation_rms{{module="m.{number}"}}' for number in range(WIDTH)])
    values = np.random.default_rng(0).standard_normal((1, WIDTH)).astype(np.float32)
    block = FrameBlock(catalog.id, np.array([1]), np.array([1.0]), values)
    return encode_batch(BatchHeader(attempt=1, sequence=0), [block])


def measure(port: int, rounds: int, steps: int) -> dict[str, float]:
    """Return the CPU microseconds of a post by each client."""
    body, training = make_body(), Training()
    clients = make_clients(port, TIMEOUT_SECONDS)
    posters = {name: Poster(post, body) for name, post in clients.items()}
    for number in range(rounds + 1):
        for poster in posters.values():
            for _ in range(steps):
                training.step()
                poster.step()
            poster.finish()
            if number == 0:  # the first round warms everything up
                poster.cpu_seconds, poster.posts = 0.0, 0
    return {name: 1e6 * item.cpu_seconds / item.posts for name, item in posters.items()}


def import_milliseconds(modules: str) -> float:
    code = f"import time; t = time.process_time(); import {modules}; print(time.process_time() - t)"
    runs = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    )
    return 1e3 * min(float(run.stdout) for run in runs)


def patience(port: int) -> dict[str, float]:
    """Return the seconds each client waits for an answer that arrives byte by byte."""
    found = {}
    libraries = (httpx.HTTPError, httpx2.HTTPError, urllib3.exceptions.HTTPError)
    failures = (StabilizerError, OSError, *libraries)
    for name, post in make_clients(port, SHORT_TIMEOUT_SECONDS).items():
        start = time.perf_counter()
        with suppress(*failures):
            post(b"")
        found[name] = time.perf_counter() - start
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=25, help="steps of one arm in a round")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--drip", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.drip)
    torch.set_num_threads(1)
    (server, port), (dripping, drip_port) = start_server(), start_server("--drip")
    try:
        costs = measure(port, arguments.rounds, arguments.steps)
        waits = patience(drip_port)
    finally:
        server.kill()
        dripping.kill()
    imports = {name: import_milliseconds(modules) for name, modules in IMPORTS.items()}
    report(costs, waits, imports)


def report(costs: dict[str, float], waits: dict[str, float], imports: dict[str, float]) -> None:
    result = {
        "cpu_us_per_post": costs,
        "ratio_to_ours": {name: cost / costs["ours"] for name, cost in costs.items()},
        "core_percent_at_10_per_s": {name: cost * 10 / 1e4 for name, cost in costs.items()},
        "import_cpu_ms": imports,
        "drip_seconds": waits,
    }
    table = Table("client", "CPU us/post", "ratio", "core % at 10/s", "import, CPU ms", "drip, s")
    for name in costs:
        table.add_row(name, *(f"{column[name]:.2f}" for column in result.values()))
    Console().print(table)
    rounded = {
        key: {name: round(value, 2) for name, value in column.items()}
        for key, column in result.items()
    }
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()

"""What the collector takes in over HTTP, against an empty FastAPI POST on the same machine.

    python benchmarks/ingest_http.py [--seconds 5] [--clients 2] [--report FILE]

Both servers are processes of their own on loopback, one worker each, and the clients that load them
are threads of this one, each with a connection that it keeps. The peer reads the same bodies and
answers with a fixed JSON document of the same size: what is left is what it costs to decode, store
durably (SQLite, synchronous = FULL), judge by the shipped rules, and answer. The servers are
measured in turns within one run, and the ratio is the number that travels between machines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from rich.console import Console
from rich.table import Table

from stabilizer.protocol.batches import BatchHeader
from stabilizer.protocol.frames import CONTENT_TYPE, FrameBlock, encode_batch
from stabilizer.protocol.message import PROTOCOL_VERSION
from stabilizer.protocol.runs import RunRegister, RunRegistered
from stabilizer.protocol.series import Catalog, SeriesKey

KINDS = ("o_proj", "fc2", "q_proj", "k_proj")
PEER_PORT_LINE = "peer on "


@dataclass(frozen=True)
class Case:
    """One shape of load."""

    num_series: int
    steps_per_request: int


CASES = [Case(150, 1), Case(150, 16), Case(2000, 1), Case(2000, 16)]


@dataclass(frozen=True)
class Result:
    """What came of a case; requests of the peer are those of the same bodies."""

    num_series: int
    steps_per_request: int
    requests_per_second: float
    frames_per_second: float
    points_per_second: float
    median_milliseconds: float
    peer_requests_per_second: float
    ratio: float


def make_catalog(num_series: int) -> Catalog:
    """Make series as an agent has them: a few global ones, the rest of modules."""
    series = [SeriesKey(metric=name) for name in ("loss", "z_loss", "grad_norm", "step_seconds")]
    metrics = ("activation_rms", "grad_norm", "attention_entropy")
    layer = 0
    while len(series) < num_series:
        for kind in KINDS:
            for metric in metrics:
                labels = {
                    "module": f"model.layers.{layer}.{kind}",
                    "layer": str(layer),
                    "kind": kind,
                    "tower": "language",
                }
                series.append(SeriesKey(metric=metric, labels=labels))
        layer += 1
    return Catalog(series=tuple(series[:num_series]))


class Load:
    """A job that reports as fast as it is answered, until its time is over."""

    def __init__(self, url: str, name: str, case: Case) -> None:
        self.case = case
        self.catalog = make_catalog(case.num_series)
        self.client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self.rng = np.random.default_rng(0)
        self.seconds: list[float] = []
        register = RunRegister(
            protocol_version=PROTOCOL_VERSION, name=name, catalogs=(self.catalog,)
        )
        answer = self.client.post(
            "/api/v1/runs",
            content=register.model_dump_json(),
            headers={"content-type": "application/json"},
        )
        answer.raise_for_status()
        self.run_id = RunRegistered.model_validate_json(answer.content).run_id

    def bodies(self) -> Iterator[bytes]:
        """Make batches of a healthy run: noise around constants."""
        steps, sequence = 0, 0
        while True:
            count = self.case.steps_per_request
            noise = self.rng.normal(1.0, 0.01, (count, self.case.num_series)).astype(np.float32)
            numbers = np.arange(steps, steps + count, dtype=np.int64)
            block = FrameBlock(self.catalog.id, numbers, 1.7e9 + numbers.astype(float), noise)
            yield encode_batch(BatchHeader(attempt=1, sequence=sequence), [block])
            steps, sequence = steps + count, sequence + 1

    def send(self, seconds: float) -> None:
        """Post batches one after another."""
        path = f"/api/v1/runs/{self.run_id}/frames"
        end = time.perf_counter() + seconds
        for body in self.bodies():
            began = time.perf_counter()
            if began > end:
                break
            answer = self.client.post(path, content=body, headers={"content-type": CONTENT_TYPE})
            answer.raise_for_status()
            self.seconds.append(time.perf_counter() - began)
        self.client.close()


def measure(url: str, name: str, case: Case, clients: int, seconds: float) -> list[float]:
    """Load a server; return the times of all requests."""
    loads = [Load(url, f"{name}-{number}", case) for number in range(clients)]
    with ThreadPoolExecutor(clients) as pool:
        for sent in [pool.submit(load.send, seconds) for load in loads]:
            sent.result()
    return [taken for load in loads for taken in load.seconds]


def run_case(case: Case, urls: tuple[str, str], clients: int, seconds: float) -> Result:
    """Measure both servers in turns: peer, collector, peer, collector."""
    collector, peer = urls
    times: dict[str, list[float]] = {collector: [], peer: []}
    for turn in range(2):
        for url in (peer, collector):
            name = f"{case.num_series}-{case.steps_per_request}-{turn}"
            times[url] += measure(url, name, case, clients, seconds / 2)
    rate, peer_rate = (len(times[url]) / seconds for url in (collector, peer))
    frames = rate * case.steps_per_request
    return Result(
        num_series=case.num_series,
        steps_per_request=case.steps_per_request,
        requests_per_second=rate,
        frames_per_second=frames,
        points_per_second=frames * case.num_series,
        median_milliseconds=float(np.median(times[collector])) * 1e3,
        peer_requests_per_second=peer_rate,
        ratio=rate / peer_rate,
    )


@contextmanager
def started(arguments: list[str], url_of: Callable[[str], str]) -> Iterator[str]:
    """Start a server; give its URL when it answers, and end it afterwards."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield url_of(process.stdout.readline().strip())
    finally:
        process.terminate()
        process.wait(30)


def serve_peer() -> None:
    """Serve an app that does nothing but read a body and answer, as fast as FastAPI can."""
    app = FastAPI()
    registered = {
        "run_id": "peer",
        "attempt": 1,
        "plan": {"every": 10, "burst_until_step": None},
        "mode": "propose",
        "protocol_version": PROTOCOL_VERSION,
    }

    @app.post("/api/v1/runs")
    async def register() -> dict[str, object]:
        return registered

    @app.post("/api/v1/runs/{run_id}/frames")
    async def frames(run_id: str, request: Request) -> Response:
        del run_id
        await request.body()
        return Response(b'{"attempt":1' + b" " * 220 + b"}", media_type="application/json")

    listener = socket.socket(proto=socket.IPPROTO_TCP)  # so that asyncio sets TCP_NODELAY
    listener.bind(("127.0.0.1", 0))
    print(f"{PEER_PORT_LINE}http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_level="error", access_log=False)
    asyncio.run(uvicorn.Server(config).serve([listener]))


def show(results: list[Result], clients: int) -> None:
    """Print the table."""
    table = Table(title=f"ingest over loopback HTTP, {clients} clients, SQLite")
    for column in ("series", "steps/request", "requests/s", "frames/s", "points/s"):
        table.add_column(column, justify="right")
    for column in ("median ms", "empty POST/s", "ratio"):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(
            str(result.num_series),
            str(result.steps_per_request),
            f"{result.requests_per_second:.0f}",
            f"{result.frames_per_second:.0f}",
            f"{result.points_per_second:.3g}",
            f"{result.median_milliseconds:.2f}",
            f"{result.peer_requests_per_second:.0f}",
            f"{result.ratio:.3f}",
        )
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="per case and server")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--report", type=Path, help="write the numbers as JSON")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        serve_peer()
        return
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{folder}/bench.db"
        serve = ["-m", "stabilizer", "serve", "--port", "0", "--database", database]
        with (
            started(serve, lambda line: line.removeprefix("listening on ")) as collector,
            started([__file__, "--peer"], lambda line: line.removeprefix(PEER_PORT_LINE)) as peer,
        ):
            urls = (collector, peer)
            results = [run_case(case, urls, options.clients, options.seconds) for case in CASES]
    show(results, options.clients)
    if options.report:
        options.report.write_text(json.dumps([asdict(result) for result in results], indent=2))


if __name__ == "__main__":
    main()

"""What pages ask for, as ratios against a plain list of runs in the same process.

    python benchmarks/overview_speed.py [--runs 500] [--steps 35000] [--repeats 5]

One collector on a SQLite file, asked through its whole HTTP stack without a socket. The peer is
`GET /runs` of the same 500 runs: what is left is what it costs to know the phase, incident, command
and loss of each, or to reduce a long history to a chart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient
from rich.console import Console
from rich.table import Table

from stabilizer.clock import SystemClock
from stabilizer.collector.api.app import create_app
from stabilizer.collector.services.container import Services, build_services
from stabilizer.collector.storage.repositories import Repositories, StoredBatch
from stabilizer.protocol.batches import BatchHeader
from stabilizer.protocol.frames import Batch, FrameBlock
from stabilizer.protocol.message import PROTOCOL_VERSION
from stabilizer.protocol.runs import RunRegister
from stabilizer.protocol.series import Catalog, SeriesKey
from stabilizer.settings import CollectorSettings

BASE_URL = "http://127.0.0.1:8000"
GLOBAL = Catalog.of(["loss", "z_loss", "grad_norm", 'lr{group="0"}', "lr_scale", "step_seconds"])
NUM_LAYERS, KINDS = 12, ("q_proj", "k_proj", "o_proj", "fc2")
MODULES = Catalog(
    series=tuple(
        SeriesKey(
            metric="activation_rms",
            labels={
                "tower": "language",
                "layer": str(layer),
                "kind": kind,
                "module": f"layers.{layer}.{kind}",
            },
        )
        for layer in range(NUM_LAYERS)
        for kind in KINDS
    )
)


def block(catalog: Catalog, first_step: int, num_frames: int, every: int = 1) -> FrameBlock:
    steps = first_step + every * np.arange(num_frames)
    values = np.random.default_rng(first_step).lognormal(size=(num_frames, len(catalog)))
    return FrameBlock(catalog.id, steps, 1.7e9 + steps, values.astype(np.float32))


def make_sweep(services: Services, num_runs: int) -> list[str]:
    """Register runs that have reported ten steps each."""
    run_ids = []
    for number in range(num_runs):
        register = RunRegister(
            protocol_version=PROTOCOL_VERSION, name=f"sweep {number}", catalogs=(GLOBAL,)
        )
        run_ids.append(services.runs.register(register).run_id)
    report(services, run_ids, 0, 10)
    return run_ids


def report(services: Services, run_ids: list[str], sequence: int, num_frames: int) -> None:
    for run_id in run_ids:
        frames = block(GLOBAL, 1 + 100 * sequence, num_frames)
        services.ingest.accept(run_id, Batch(BatchHeader(attempt=1, sequence=sequence), (frames,)))


def make_long_run(services: Services, num_steps: int) -> str:
    """Write a long history as it lies after years: one row for each step, straight into storage."""
    register = RunRegister(
        protocol_version=PROTOCOL_VERSION, name="long", catalogs=(GLOBAL, MODULES)
    )
    run_id = services.runs.register(register).run_id
    now = SystemClock().now()
    with services.database.transaction() as session:
        repos = Repositories(session)
        run = repos.runs.require(run_id)
        for step in range(1, num_steps + 1):
            blocks = [block(GLOBAL, step, 1)]
            if step % 10 == 0:
                blocks.append(block(MODULES, step, 1))
            run.version += 1
            batch = StoredBatch(run_id, 1, step, run.version, evaluated=True, received_at=now)
            repos.frames.add_batch(batch, blocks)
            if step % 1000 == 0:
                session.flush()
                session.expunge_all()
                run = repos.runs.require(run_id)
    return run_id


def timed(call: Callable[[], object], repeats: int) -> Iterator[float]:
    for _ in range(repeats):
        began = time.process_time()  # client and collector are one process: neighbours do not count
        call()
        yield time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--steps", type=int, default=35_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = CollectorSettings(
            database_url=f"sqlite:///{Path(folder) / 'bench.db'}", tokens=(), sweep_seconds=60
        )
        services = build_services(settings, SystemClock())
        app = create_app(settings, SystemClock(), services)
        try:
            with TestClient(app, base_url=BASE_URL) as client:
                measure(client, services, arguments)
        finally:
            services.close()


def measure(client: TestClient, services: Services, arguments: argparse.Namespace) -> None:
    def get(path: str, **params: object) -> Callable[[], object]:
        def call() -> None:
            answer = client.get(f"/api/v1{path}", params=params)
            assert answer.status_code == 200, answer.text

        return call

    run_ids = make_sweep(services, arguments.runs)
    sweep = {"limit": 500, "name": "sweep"}
    overview, peer = get("/overview", **sweep), get("/runs", **sweep)
    table = Table("what", "CPU ms", "times GET /runs")
    base = statistics.median(timed(peer, arguments.repeats))

    def show(what: str, seconds: float) -> None:
        table.add_row(what, f"{1000 * seconds:.0f}", f"{seconds / base:.2f}")

    show(f"GET /runs, {arguments.runs} runs", base)
    show("GET /overview, first time", next(timed(overview, 1)))
    show("GET /overview, nothing new", statistics.median(timed(overview, arguments.repeats)))
    report(services, run_ids, 1, 1)
    show("GET /overview, a batch of each run later", next(timed(overview, 1)))
    run = f"/runs/{make_long_run(services, arguments.steps)}"
    heatmap = get(f"{run}/heatmap", metric="activation_rms", max_columns=500)
    frames = arguments.steps // 10
    show(
        f"heatmap, {len(MODULES)} series of {frames} frames as {len(MODULES)} x 500",
        statistics.median(timed(heatmap, arguments.repeats)),
    )
    loss = get(f"{run}/series/data", series="loss", max_points=1000)
    show(
        f"loss, {arguments.steps} batches as 1000 points",
        statistics.median(timed(loss, arguments.repeats)),
    )
    show(f"sparkline of {arguments.steps} batches, first time", next(timed(until_drawn(client), 1)))
    Console().print(table)


def until_drawn(client: TestClient) -> Callable[[], object]:
    """Look until the collector has read the whole history; each look reads a part of it."""

    def call() -> None:
        drawn = None
        while drawn is None:
            found = client.get("/api/v1/overview", params={"name": "long"}).json()
            drawn = found["rows"][0]["sparkline"]

    return call


if __name__ == "__main__":
    main()

"""How long a frame takes to the page: from its report to its point in the chart of a real browser.

Starts a collector, a dashboard and a headless Chromium. Each round reports one step over HTTP and
waits until the loss chart of the open page holds it. Printed beside it, from the same rounds: how
long the collector takes to answer the report, and how long it takes until the API shows the step,
which is what the page can be at best. The limit that the page promises is one second.

    python benchmarks/page_latency.py [--rounds 40]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

from trainer.demo.processes import Processes

PROMISE_SECONDS = 1.0
WARM_UP = 5
BROWSER = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# Resolves when the point is in the chart, looked at in every frame that the browser paints.
POINT = """
step => new Promise(done => {
  const look = () => {
    const plot = document.querySelector('#chart-loss .js-plotly-plot');
    const x = plot && plot.data && plot.data[0] ? plot.data[0].x : [];
    x.length && x[x.length - 1] >= step ? done(true) : requestAnimationFrame(look);
  };
  look();
})
"""


def start(processes: Processes, folder: Path, name: str, module: str, arguments: list[str]) -> str:
    ready = folder / f"{name}.url"
    process = processes.start(name, module, [*arguments, "--ready-file", str(ready)])
    return processes.wait_for_file(process, ready, 60.0)


def register(http: httpx.Client) -> str:
    body = {"protocol_version": 1, "name": "latency", "heartbeat_seconds": 3600}
    return str(http.post("/runs", json=body).json()["run_id"])


def report(http: httpx.Client, run_id: str, step: int) -> None:
    values = {"loss": 2.0 + 1.0 / step, "grad_norm": 0.5, "z_loss": 17.0, "lr_scale": 1.0}
    frame = {"step": step, "values": values}
    body = {"attempt": 1, "sequence": step, "frames": [frame]}
    http.post(f"/runs/{run_id}/frames", json=body).raise_for_status()


def shown_by_api(http: httpx.Client, run_id: str, step: int) -> None:
    query: dict[str, str | int] = {"series": "loss", "from_step": step}
    while True:
        data = http.get(f"/runs/{run_id}/series/data", params=query).json()
        if data and data[0]["steps"][-1] >= step:
            return


def measure(rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"report": [], "api": [], "page": []}
    with tempfile.TemporaryDirectory() as name, Processes(Path(name) / "logs") as processes:
        folder = Path(name)
        database = f"sqlite:///{folder}/stabilizer.db"
        arguments = ["serve", "--port", "0", "--database", database]
        url = start(processes, folder, "collector", "stabilizer", arguments)
        arguments = ["--port", "0", "--collector", url]
        page_url = start(processes, folder, "dashboard", "dashboard", arguments)
        with httpx.Client(base_url=f"{url}/api/v1", timeout=30, trust_env=False) as http:
            run_id = register(http)
            for step in range(1, 101):
                report(http, run_id, step)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                page.goto(f"{page_url}/runs/{run_id}")
                page.evaluate(POINT, 100)
                for step in range(101, 101 + WARM_UP + rounds):
                    began = time.perf_counter()
                    report(http, run_id, step)
                    reported = time.perf_counter()
                    shown_by_api(http, run_id, step)
                    visible = time.perf_counter()
                    page.evaluate(POINT, step)
                    drawn = time.perf_counter()
                    if step > 100 + WARM_UP:
                        found["report"].append(reported - began)
                        found["api"].append(visible - began)
                        found["page"].append(drawn - began)
                    time.sleep(0.2 + 0.017 * (step % 13))  # no rhythm with the page's own
                browser.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    found = measure(parser.parse_args().rounds)
    names = {"report": "answered", "api": "in the API", "page": "on the page"}
    for name, seconds in found.items():
        ordered = sorted(seconds)
        median, late = statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))]
        print(f"{names[name]:<12} median {1e3 * median:6.0f} ms   95 % within {1e3 * late:6.0f} ms")
    page = statistics.median(found["page"])
    print(f"page against API: {page / statistics.median(found['api']):.1f} times")
    print(f"page against its promise of {PROMISE_SECONDS:g} s: {page / PROMISE_SECONDS:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

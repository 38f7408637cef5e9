"""How many doors a reader opens: files and functions of ours that run on the three main paths.

Starts a collector, a dashboard and a training job as processes, as a user would, and records which
functions of `stabilizer` and `dashboard` run while something happens:

- rollback: a gradient becomes NaN; the job reports it, the collector decides, the job rewinds
- approval: the same with a proposal, from its approval to the rewind
- chart: steps are reported while a browser shows the run, until the chart has the points

Prints one JSON object. `--root` counts another checkout of the project.

    python benchmarks/doors.py [--root DIR]
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 240.0
ROOMS = ("stabilizer", "dashboard")
FAULT_STEP = 60
POLICY = """
rules:
  - {name: nan_loss, select: {metric: [loss, grad_norm], module: null}, detect: {nonfinite: {}},
     severity: divergence}
policy:
  mode: propose
  ladder: [{rollback: {margin: 10, skip: 0}}]
  act_on: {any: [severity:divergence]}
  wait: 0
  healthy_after: 5
  sampling: {every: 5, burst: 5}
  guards: {budget: {rollback: 2, per_steps: 500}, cooldown: 5, watch: 10}
"""
# Runs in every process of the project: SIGUSR1 forgets what ran so far, SIGUSR2 writes it down.
RECORDER = """
import os, signal, sys, threading
root, out, ran = os.environ["DOORS_ROOT"], os.environ["DOORS_OUT"], set()
def profile(frame, event, argument):
    if event == "call":
        code = frame.f_code
        if code.co_filename.startswith(root) and not code.co_name.startswith("<"):
            ran.add((code.co_filename, code.co_qualname))
def write(*_):
    with open(f"{out}/{os.getpid()}", "w") as file:
        file.writelines(f"{name}\\t{function}\\n" for name, function in sorted(ran))
    os.rename(file.name, f"{file.name}.txt")
signal.signal(signal.SIGUSR1, lambda *_: ran.clear())
signal.signal(signal.SIGUSR2, write)
threading.setprofile(profile)
sys.setprofile(profile)
"""


class Programs:
    """The processes of the project, each with the recorder."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self.folder = root, folder
        self._running: list[subprocess.Popen[bytes]] = []
        self._traces = folder / "traces"
        self._traces.mkdir()
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(RECORDER)

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a module of the project with its arguments."""
        environment = os.environ | {
            "PYTHONPATH": f"{self.folder / 'site'}:{self._root}",
            "DOORS_ROOT": f"{self._root}/",
            "DOORS_OUT": str(self._traces),
            "OMP_NUM_THREADS": "1",
        }
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._running.append(process)
        return process

    def serve(self, name: str, *command: str) -> str:
        """Start a server; return its address."""
        ready = self.folder / f"{name}.url"
        self.start(name, *command, "--port", "0", "--ready-file", str(ready))
        wait_for(ready.exists, f"{name} to listen")
        return ready.read_text().strip()

    @contextmanager
    def recording(self, into: dict[str, set[str]]) -> Iterator[None]:
        """Record what runs inside the block, by room."""
        self._signal(signal.SIGUSR1)
        yield
        alive = self._signal(signal.SIGUSR2)
        wait_for(lambda: len(list(self._traces.glob("*.txt"))) == alive, "the records")
        for file in self._traces.glob("*.txt"):
            for line in file.read_text().splitlines():
                path = str(Path(line.partition("\t")[0]).relative_to(self._root))
                if path.partition("/")[0] in ROOMS:
                    into.setdefault(path, set()).add(line.partition("\t")[2])
            file.unlink()

    def _signal(self, number: signal.Signals) -> int:
        alive = [process for process in self._running if process.poll() is None]
        for process in alive:
            process.send_signal(number)
        return len(alive)

    def stop(self) -> None:
        """End all processes."""
        for process in reversed(self._running):
            process.terminate()
        for process in self._running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + LIMIT_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {LIMIT_SECONDS:.0f} s for {what}")
        time.sleep(0.02)


def steps(out: Path) -> list[int]:
    file = out / "losses.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def is_rewound(out: Path) -> bool:
    seen = steps(out)
    return any(after < before for before, after in itertools.pairwise(seen))


def start_job(programs: Programs, url: str, name: str, mode: str) -> Path:
    out = programs.folder / name
    policy = programs.folder / "policy.yaml"
    policy.write_text(POLICY)
    fault = ["--set", f"faults.nan_gradient.step={FAULT_STEP}"]
    fault += ["--set", "faults.nan_gradient.module=model.model.embed_tokens"]
    snapshots = ["--set", "monitor.snapshot_every=10"]
    arguments = ["--data", str(programs.folder / "data"), "--out", str(out), "--collector", url]
    options = ["--run", name, "--mode", mode, "--policy", str(policy), "--steps", "2000"]
    programs.start(name, "trainer", "fit", *arguments, *options, *fault, *snapshots)
    return out


def measure(programs: Programs) -> dict[str, dict[str, set[str]]]:
    found: dict[str, dict[str, set[str]]] = {"rollback": {}, "approval": {}, "chart": {}}
    arguments = ["data", "make", "--out", str(programs.folder / "data"), "--documents", "400"]
    programs.start("data", "trainer", *arguments).wait(LIMIT_SECONDS)
    url = programs.serve("collector", "stabilizer", "serve")
    out = start_job(programs, url, "auto", "auto")
    wait_for(lambda: max(steps(out), default=0) >= FAULT_STEP - 2, "the fault")
    with programs.recording(found["rollback"]):
        wait_for(lambda: is_rewound(out), "the rollback")
    chart(programs, url, found["chart"])
    programs.stop()
    url = programs.serve("second", "stabilizer", "serve")
    out = start_job(programs, url, "propose", "propose")
    with httpx.Client(base_url=f"{url}/api/v1", timeout=30, trust_env=False) as http:
        wait_for(lambda: proposals(http), "the proposal")
        (command, *_) = proposals(http)
        with programs.recording(found["approval"]):
            http.post(f"/commands/{command}/approve", json={"reason": "counted"}).raise_for_status()
            wait_for(lambda: is_rewound(out), "the rollback")
    return found


def proposals(http: httpx.Client) -> list[str]:
    runs = [run for run in http.get("/runs").json()["runs"] if run["name"] == "propose"]
    if not runs:
        return []
    query = {"states": "proposed"}
    page = http.get(f"/runs/{runs[0]['id']}/commands", params=query).json()
    return [command["id"] for command in page]


def chart(programs: Programs, url: str, into: dict[str, set[str]]) -> None:
    with httpx.Client(base_url=f"{url}/api/v1", timeout=30, trust_env=False) as http:
        run_id = http.get("/runs").json()["runs"][0]["id"]
    page_url = programs.serve("dashboard", "dashboard", "--collector", url)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{page_url}/runs/{run_id}")
        page.wait_for_function("document.querySelector('#chart-loss .js-plotly-plot')?.data?.[0]")
        points = (
            "document.querySelector('#chart-loss .js-plotly-plot').data"
            ".reduce((sum, trace) => sum + (trace.x?.length ?? 0), 0)"
        )
        page.wait_for_timeout(3000)
        with programs.recording(into):
            drawn = page.evaluate(points)
            page.wait_for_function(f"{points} > {drawn} + 5", timeout=60_000)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--files", action="store_true", help="name the files on standard error")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        programs = Programs(options.root.resolve(), Path(name))
        try:
            found = measure(programs)
        except TimeoutError:
            for log in Path(name).glob("*.log"):
                print(log.name, log.read_text()[-1500:], file=sys.stderr)
            raise
        finally:
            programs.stop()
    if options.files:
        for path, files in found.items():
            print(path, *sorted(files), sep="\n  ", file=sys.stderr)
    counts = {
        path: {"files": len(files), "functions": sum(map(len, files.values()))}
        for path, files in found.items()
    }
    print(json.dumps(counts))


if __name__ == "__main__":
    main()

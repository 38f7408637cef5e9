"""Tokens per second of the trainer with the agent on, against the same run with the agent off.

    OMP_NUM_THREADS=1 python benchmarks/trainer_speed.py [--presets "idefics-tiny idefics-20m"]
        [--seconds 100] [--json FILE]

Both arms are processes of their own, started as a person starts them (`python -m trainer fit`), on
one torch thread: one reports to a collector on loopback, a process of its own too, with everything
that is on by default (a frame at every step, modules measured at every tenth, a snapshot at every
25th); the peer has no agent. They take turns of 25 steps, the other one stopped by SIGSTOP
meanwhile, so that another load on the machine meets both. A step that a stop fell into does not
count.

Two numbers travel between machines. The ratio of the CPU time of a step (all threads of the
process, system time too) feels another load least: it is what the agent costs. The ratio of tokens
per second by the wall clock is what a person sees; each turn is compared with the one before it,
and the median and the quartiles of these ratios are shown. Tokens are those without padding, and
the stream gives both arms the same ones. `mfu` is what the trainer reports to the collector, the
median of all steps, with the fastest matrix product of torch that this process sees in two seconds
for `training.peak_flops`. Five minutes on a machine that has little else to do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import torch
from rich.console import Console
from rich.table import Table

from trainer.config import RunConfig, load_config
from trainer.data import StreamLoader, open_tokenizer, open_training_stream
from trainer.data.making import make_corpus
from trainer.demo.processes import Process, Processes
from trainer.run.throughput import training_flops

DOCUMENTS = 1200
WARM_UP_STEPS = 12
COUNTED_STEPS = 200
TURN_STEPS = 25
LEAST_PAIRS = 3
MOST_SECONDS = 180.0
"""Within which every process gets ready and every turn ends."""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Turn:
    """What an arm did while it alone ran."""

    steps_per_second: float
    """Without the step that the last stop fell into."""
    cpu_seconds: float
    """Of the process in the whole turn."""
    steps: int
    """That ended in it."""


@dataclass
class Arm:
    """A run in a process that can be stopped and let go on."""

    process: Process
    losses: Path
    turns: list[Turn] = field(default_factory=list)

    @property
    def ends(self) -> list[float]:
        """When each step ended, in seconds since the run began."""
        if not self.losses.exists():
            return []
        whole = self.losses.read_text().rpartition("\n")[0]
        return [json.loads(line)["seconds"] for line in whole.splitlines()]

    @property
    def cpu_seconds(self) -> float:
        """Of all threads, user and system."""
        fields = Path(f"/proc/{self.process.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def warm_up(self) -> None:
        """Let it come to its pace, and stop it."""
        self.wait_for(WARM_UP_STEPS)
        self.send(signal.SIGSTOP)

    def take_turn(self) -> None:
        """Let it make its steps alone."""
        before, cpu = len(self.ends), self.cpu_seconds
        self.send(signal.SIGCONT)
        self.wait_for(before + TURN_STEPS + 1)
        self.send(signal.SIGSTOP)
        inside = self.ends[before:]
        span = inside[TURN_STEPS] - inside[0]  # the first one began in an earlier turn
        self.turns.append(Turn(TURN_STEPS / span, self.cpu_seconds - cpu, len(inside)))

    def wait_for(self, steps: int) -> None:
        """Wait until it has made so many steps in all."""
        deadline = time.monotonic() + MOST_SECONDS
        while len(self.ends) < steps:
            if not self.process.is_running or time.monotonic() > deadline:
                raise self.process.failure()
            time.sleep(0.05)

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process.popen.pid, number)


@dataclass(frozen=True)
class Result:
    """A preset's two arms."""

    preset: str
    tokens_per_step: float
    steps: dict[str, int]
    tokens_per_second: dict[str, float]
    """Medians of the turns."""
    tokens_per_cpu_second: dict[str, float]
    ratios: list[float]
    """Tokens per second with the agent, as a part of those without, by pairs of turns."""
    cpu_ratio: float
    """CPU time of a step with the agent, as a multiple of that without."""
    mfu: float
    """As the trainer reports it: the median."""
    mfu_off: float
    """Worked out in the same way from the median turn without the agent."""
    series: int
    peak_flops: float


def find_peak_flops() -> float:
    """Return operations per second of the fastest matrix product that was seen in two seconds."""
    size, best = 512, 0.0
    left, right = torch.randn(size, size), torch.randn(size, size)
    ends_at = time.perf_counter() + 2.0
    while time.perf_counter() < ends_at:
        began = time.perf_counter()
        left @ right
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def count_tokens(config: RunConfig, steps: int) -> float:
    """Return the mean tokens of a step, over the first ones."""
    tokenizer = open_tokenizer(config.data)
    size = config.model.vision.image_size
    stream = open_training_stream(
        config.data, tokenizer, image_size=size, seed=config.training.seed
    )
    loader = StreamLoader(stream, batch_size=config.data.batch_size)
    batches = itertools.islice(loader, steps)
    return statistics.fmean(float(batch["attention_mask"].sum()) for batch in batches)


def measure(preset: str, processes: Processes, folder: Path, url: str, seconds: float) -> Result:
    peak = find_peak_flops()
    arms: dict[str, Arm] = {}
    for name in ("off", "on"):
        out = folder / f"{preset}-{name}"
        arguments = ["fit", "--preset", preset, "--data", str(folder / "corpus"), "--out", str(out)]
        arguments += ["--steps", "100000", "--threads", "1", "--set", "training.accelerator=cpu"]
        arguments += ["--set", f"training.peak_flops={peak:.0f}"]
        if name == "on":
            arguments += ["--collector", url, "--run", preset, "--mode", "observe"]
        process = processes.start(f"{preset}-{name}", "trainer", arguments)
        arms[name] = Arm(process, out / "losses.jsonl")
        arms[name].warm_up()
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at or len(arms["on"].turns) < LEAST_PAIRS:
        for arm in arms.values():
            arm.take_turn()
    arms["on"].send(signal.SIGCONT)
    config = load_config(preset, fields={"data.folder": str(folder / "corpus")})
    mfu, series = ask(url, preset)
    result = compare(preset, arms, config, peak, mfu, series)
    for arm in arms.values():
        arm.send(signal.SIGKILL)  # a stopped process does not hear anything else
        arm.process.popen.wait()
    return result


def ask(url: str, run: str) -> tuple[float, int]:
    """Return the median of `mfu` and how many series there are; what is on its way may come."""
    time.sleep(3.0)
    with httpx.Client(base_url=f"{url}/api/v1", timeout=30, trust_env=False) as http:
        runs = http.get("/runs").json()["runs"]
        run_id = next(each["id"] for each in runs if each["name"] == run)
        data = http.get(f"/runs/{run_id}/series/data", params={"series": "mfu"}).json()
        count = len(http.get(f"/runs/{run_id}/series").json())
    return statistics.median(value for each in data for value in each["values"] if value), count


def compare(
    preset: str, arms: dict[str, Arm], config: RunConfig, peak: float, mfu: float, series: int
) -> Result:
    tokens = count_tokens(config, COUNTED_STEPS)
    rates = {name: [turn.steps_per_second for turn in arm.turns] for name, arm in arms.items()}
    steps = {name: sum(turn.steps for turn in arm.turns) for name, arm in arms.items()}
    cpu = {
        name: sum(turn.cpu_seconds for turn in arm.turns) / steps[name]
        for name, arm in arms.items()
    }
    flops = training_flops(config) * config.data.batch_size
    return Result(
        preset=preset,
        tokens_per_step=tokens,
        steps=steps,
        tokens_per_second={name: tokens * statistics.median(own) for name, own in rates.items()},
        tokens_per_cpu_second={name: tokens / own for name, own in cpu.items()},
        ratios=[on / off for on, off in zip(rates["on"], rates["off"], strict=True)],
        cpu_ratio=cpu["on"] / cpu["off"],
        mfu=mfu,
        mfu_off=flops * statistics.median(rates["off"]) / peak,
        series=series,
        peak_flops=peak,
    )


def report(results: list[Result]) -> None:
    console = Console(width=150)
    columns = ("preset", "agent", "steps", "tokens/s", "tokens per CPU s", "mfu")
    table = Table(*columns, title="speed of the trainer: one torch thread, medians of the turns")
    for result in results:
        for name, mfu in (
            ("off", f"{result.mfu_off:.1%} (worked out)"),
            ("on", f"{result.mfu:.1%}"),
        ):
            table.add_row(
                result.preset,
                name,
                str(result.steps[name]),
                f"{result.tokens_per_second[name]:,.0f}",
                f"{result.tokens_per_cpu_second[name]:,.0f}",
                mfu,
            )
    console.print(table)
    for result in results:
        low, middle, high = statistics.quantiles(result.ratios, n=4)
        console.print(
            f"{result.preset}, agent on against off: tokens/s {middle:.3f} of the peer's "
            f"(quartiles {low:.3f} to {high:.3f}, {len(result.ratios)} pairs of turns), CPU time "
            f"of a step {result.cpu_ratio:.3f} times the peer's; {result.series} series, "
            f"{result.tokens_per_step:.1f} tokens a step, peak {result.peak_flops / 1e9:.1f} "
            "GFLOP/s",
            highlight=False,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", default="idefics-tiny idefics-20m", help="with spaces between")
    parser.add_argument("--seconds", type=float, default=100.0, help="of turns, for each preset")
    parser.add_argument("--json", type=Path, default=None, help="where the numbers go as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Processes(folder / "logs") as processes:
            make_corpus(folder / "corpus", documents=DOCUMENTS, seed=0)
            ready = folder / "collector.url"
            database = f"sqlite:///{folder}/stabilizer.db"
            arguments = ["serve", "--port", "0", "--database", database]
            arguments += ["--ready-file", str(ready)]
            collector = processes.start("collector", "stabilizer", arguments)
            url = processes.wait_for_file(collector, ready, MOST_SECONDS)
            results = [
                measure(preset, processes, folder, url, options.seconds)
                for preset in options.presets.split()
            ]
    report(results)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()

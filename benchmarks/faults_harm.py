"""What each failure on demand does to an unprotected run of idefics-tiny, against its twin.

    OMP_NUM_THREADS=1 python benchmarks/faults_harm.py [--seeds 3 --steps 160 --strike 70]
        [--first-seed 0] [--faults "nan_gradient; lr_too_high"] [--json FILE]
        [--set faults.scaled_weights.factor=1000 --set optimizer.betas="[0.9, 0.999]"]

For every seed one run is trained to its end, with checkpoints on the way: the undisturbed twin.
From its checkpoint at the step of the fault a run for each fault goes on with it, with the defaults
of the configuration; nobody watches. Resumed runs are the same to a bit, so every difference is the
fault's: the row of `slow_rank`, which changes no number, shows it. Compared are the mean loss of
the last 50 steps, the loss on the held-out documents, and the worst single step. A run has failed
when it stopped, or when its final or held-out loss is not finite or 10 percent above its twin's.
Losses are exact, so another load on the machine does not matter. One process; four minutes without
options, where nothing else runs, and six for each seed of the whole measurement. `fp16_overflow,
with a scaler` trains in fp16, which takes CPUs eight times as long; it is left out unless it is
named.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from stabilizer.errors import StabilizerError
from trainer.config import load_config
from trainer.data.making import make_corpus
from trainer.run import fit

FAILED_AT = 1.10
TAIL_STEPS = 50
BATCH = 8
BAD_STEPS = 30
DOCUMENTS = 1200
CHECKPOINT_EVERY = 10
STALE_BY = 50
SLOW = "fp16_overflow, with a scaler"


def list_faults(step: int) -> dict[str, dict[str, Any]]:
    """Return the settings of every fault that strikes after `step` completed steps, by name."""
    window = {"first_sample": step * BATCH, "samples": BAD_STEPS * BATCH}
    return {
        "lr_too_high": {"faults.lr_too_high": {"step": step}},
        "lr_restart": {"faults.lr_restart": {"step": step}},
        "bad_documents": {"faults.bad_documents": window},
        "repeated_documents": {"faults.repeated_documents": window},
        "corrupted_shard": {
            "faults.corrupted_shard": {"shard": "web_documents/part-00000.parquet"}
        },
        "scaled_weights": {"faults.scaled_weights": {"step": step}},
        "flipped_weights": {"faults.flipped_weights": {"step": step}},
        "lost_moments": {"faults.lost_moments": {"step": step}},
        "stale_moments": {"faults.stale_moments": {"step": step, "age": STALE_BY}},
        "fresh_weights": {"faults.fresh_weights": {}},
        "logit_drift": {"faults.logit_drift": {"step": step}},
        "fp16_overflow": {"faults.fp16_overflow": {"step": step}},
        SLOW: {
            "faults.fp16_overflow": {"step": step},
            "training.precision": "fp16",
        },
        "nan_gradient": {"faults.nan_gradient": {"step": step}},
        "slow_rank": {"faults.slow_rank": {"step": step, "seconds": 0.2}},
    }


@dataclass(frozen=True)
class Outcome:
    """What came out of a run."""

    final: float
    heldout: float
    losses: list[float]
    """Of the steps behind the fault."""
    passed_over: int
    remarks: list[str]
    """What the faults say they did."""
    stopped: str = ""


@dataclass(frozen=True)
class Harm:
    """A struck run beside its twin."""

    fault: str
    seed: int
    twin_final: float
    final: float
    twin_heldout: float
    heldout: float
    worst_step: float
    """Largest ratio of two losses at the same step; infinite where one is not finite."""
    steps_apart: int
    """Steps whose losses differ, of those that both have."""
    passed_over: int
    """Documents that could not be read."""
    remarks: list[str]
    stopped: str

    @property
    def has_failed(self) -> bool:
        """Whether it stopped, or ended far above its twin; NaN is above."""
        is_fine = self.final < FAILED_AT * self.twin_final
        return bool(self.stopped) or not (is_fine and self.heldout < FAILED_AT * self.twin_heldout)


class Bench:
    """Runs of one seed in one folder."""

    def __init__(
        self,
        folder: Path,
        corpus: Path,
        changes: Mapping[str, Any],
        *,
        seed: int,
        steps: int,
        strike: int,
    ) -> None:
        self.folder = folder
        self.strike = strike
        self.changes = changes
        self.fixed = {
            "data.folder": str(corpus),
            "data.batch_size": BATCH,
            "training.seed": seed,
            "training.steps": steps,
            "training.accelerator": "cpu",
            "training.log_seconds": 86_400.0,
        }
        self.seed = seed
        self.twins: dict[str, Outcome] = {}

    def measure(self, fault: str) -> Harm:
        """Go on from the step of the fault with it, and compare."""
        settings = list_faults(self.strike)[fault]
        precision = str(settings.get("training.precision", "fp32"))
        twin_out = f"twin-{precision}"
        if precision not in self.twins:
            saving = {
                "training.precision": precision,
                "training.checkpoint_every": CHECKPOINT_EVERY,
                "training.keep_checkpoints": 99,
            }
            self.twins[precision] = self._train(twin_out, saving, resume=None)
        twin = self.twins[precision]
        # Old moments must have been seen by the run that gets them.
        begin = self.strike - (STALE_BY if fault == "stale_moments" else 0)
        name = f"attempt-0001-step-{begin:08d}"
        struck = self._train("struck", settings, self.folder / twin_out / "checkpoints" / name)
        shutil.rmtree(self.folder / "struck")
        pairs = list(zip(struck.losses, twin.losses, strict=False))  # stopped: fewer
        ratios = [a / b if math.isfinite(a) else math.inf for a, b in pairs]
        return Harm(
            fault=fault,
            seed=self.seed,
            twin_final=twin.final,
            final=struck.final,
            twin_heldout=twin.heldout,
            heldout=struck.heldout,
            worst_step=max(ratios, default=math.nan),
            steps_apart=sum(a != b for a, b in pairs),
            passed_over=struck.passed_over,
            remarks=struck.remarks,
            stopped=struck.stopped,
        )

    def _train(self, out: str, settings: Mapping[str, Any], resume: Path | None) -> Outcome:
        folder = self.folder / out
        fields = change(self.fixed | {"training.out": str(folder)} | dict(settings), self.changes)
        heldout, stopped, passed_over = math.nan, "", 0
        REMARKS.clear()
        try:
            config = load_config("idefics-tiny", fields=fields)
            summary = fit(config, resume=None if resume is None else str(resume))
            heldout = math.nan if summary.heldout_loss is None else summary.heldout_loss
            passed_over = summary.passed_over
        except StabilizerError as error:
            stopped = error.message
        lines = (folder / "losses.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        losses = [float(step["loss"]) for step in steps if step["step"] > self.strike]
        final = math.nan if stopped else statistics.fmean(losses[-TAIL_STEPS:])
        return Outcome(final, heldout, losses, passed_over, list(REMARKS), stopped)


def change(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return other settings; those of a fault only where that fault strikes."""
    changed = dict(fields)
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        if section in fields:
            changed[section] = {**changed[section], field: value}
        elif not name.startswith("faults."):
            changed[name] = value
    return changed


class Remarks(logging.Handler):
    """Keeps what faults write into the log; all else is left out."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it, or not."""
        message = record.getMessage()
        if message.startswith("fault "):
            REMARKS.append(message)


REMARKS: list[str] = []


def listen() -> None:
    logger = logging.getLogger("trainer")
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logger.addHandler(Remarks())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="runs of each kind")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=130, help="of a whole run; above 60")
    parser.add_argument("--strike", type=int, default=70, help="step of the fault")
    parser.add_argument("--faults", default="", help="only these, with semicolons between")
    parser.add_argument("--set", action="append", default=[], help="field=value, of twins, too")
    parser.add_argument("--json", type=Path, default=None, help="where the numbers go as well")
    options = parser.parse_args()
    listen()
    chosen = [name.strip() for name in options.faults.split(";") if name.strip()]
    unknown = set(chosen) - set(list_faults(1))
    if unknown:
        parser.error(f"--faults: {sorted(unknown)}; allowed: {'; '.join(list_faults(1))}")
    if (
        options.strike % CHECKPOINT_EVERY
        or not STALE_BY < options.strike < options.steps - TAIL_STEPS
    ):
        parser.error(
            f"--strike {options.strike}; allowed: multiples of {CHECKPOINT_EVERY} above {STALE_BY} "
            f"and {TAIL_STEPS} below --steps"
        )
    changes = {name: yaml.safe_load(value) for name, _, value in map(split, options.set)}
    harms: list[Harm] = []
    with TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        make_corpus(corpus, documents=DOCUMENTS, seed=0)
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            own = Path(folder) / f"seed-{seed}"
            steps, strike = options.steps, options.strike
            bench = Bench(own, corpus, changes, seed=seed, steps=steps, strike=strike)
            for fault in chosen or (each for each in list_faults(1) if each != SLOW):
                harms.append(bench.measure(fault))
                tell(harms[-1])
                if options.json is not None:
                    found = [asdict(harm) for harm in harms]
                    options.json.write_text(json.dumps(found, indent=1))
            shutil.rmtree(own)
    report(harms)


def split(assignment: str) -> tuple[str, str, str]:
    return assignment.partition("=")


def tell(harm: Harm) -> None:
    Console(width=200).print(
        f"seed {harm.seed} {harm.fault}: final {harm.final:.3f} against {harm.twin_final:.3f}, "
        f"held out {harm.heldout:.3f} against {harm.twin_heldout:.3f}, worst step "
        f"{harm.worst_step:.2f}, {harm.steps_apart} steps apart, {harm.passed_over} passed over; "
        f"{'; '.join(harm.remarks)} {harm.stopped}",
        highlight=False,
    )


def report(harms: list[Harm]) -> None:
    columns = ("fault", "twin", "struck", "ratio", "held out, ratio", "worst step", "failed")
    table = Table(*columns, title=f"loss of the last {TAIL_STEPS} steps: median (least to most)")
    for fault in dict.fromkeys(harm.fault for harm in harms):
        own = [harm for harm in harms if harm.fault == fault]
        table.add_row(
            fault,
            spread([harm.twin_final for harm in own]),
            spread([harm.final for harm in own]),
            spread([harm.final / harm.twin_final for harm in own]),
            spread([harm.heldout / harm.twin_heldout for harm in own]),
            spread([harm.worst_step for harm in own]),
            f"{sum(harm.has_failed for harm in own)} of {len(own)}",
        )
    Console(width=150).print(table)


def spread(values: list[float]) -> str:
    """Return the median and the extremes; that some are not finite is told instead."""
    broken = sum(not math.isfinite(value) for value in values)
    if broken:
        return "not finite" if broken == len(values) else f"not finite in {broken}"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()

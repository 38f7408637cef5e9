"""The causes that are tried live, and what the oracle of the laboratory rescues of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.lab import faults
from benchmarks.lab.__main__ import generate
from benchmarks.lab.faults import Fault
from benchmarks.lab.groups import change_of
from benchmarks.lab.members import Change
from benchmarks.lab.oracle import HURT
from benchmarks.lab.outcomes import summarise
from benchmarks.lab.plan import Group
from benchmarks.lab.storage import load_run
from benchmarks.lab.training import Setting

CAUSES: Final[tuple[type[Fault], ...]] = (
    faults.LrJump,
    faults.LrRestart,
    faults.LrSchedule,
    faults.LrCreep,
    faults.BadData,
    faults.WrongTargets,
    faults.ScaledWeights,
    faults.FlippedWeights,
    faults.FreshWeights,
    faults.LostEmbedding,
    faults.LostMoments,
    faults.NanGradient,
    faults.GradientSign,
    faults.GradientNoise,
    faults.LogitGrowth,
    faults.Shrinking,
)
_FAMILIES: Final = ("gpt", "encoder_decoder", "vit")
ONSET: Final = 0.5
"""Of a run's steps."""


@dataclass(frozen=True)
class Scenario:
    """A cause in a job."""

    setting: Setting
    cause: type[Fault]

    @property
    def onset(self) -> int:
        """The step after which it strikes."""
        return round(ONSET * self.setting.steps)

    @property
    def name(self) -> str:
        """Unique in the benchmark."""
        return f"{self.setting.name}_{self.cause.name}"

    def change(self) -> Change:
        """Return the change, as strong as in the laboratory."""
        return change_of(self.setting, self.cause, self.onset)

    def truth(self, folder: Path) -> Truths:
        """Return what the laboratory has computed of it."""
        twin = load_run(folder, f"{self.setting.name}_nothing")
        row = summarise(load_run(folder, self.name), twin)
        return Truths(row["untouched"], min(row["untouched"], row["best"]), row["best_action"])


@dataclass(frozen=True)
class Truths:
    """Final losses as ratios to the twin's."""

    untouched: float
    best: float
    best_action: str

    @property
    def is_rescued(self) -> bool:
        """Whether the oracle ends within 5 percent of the twin."""
        return self.best <= HURT


def list_scenarios(seeds: int, steps: int, family: str | None = None) -> Iterator[Scenario]:
    """Yield every cause in a job of each seed; families take turns."""
    for seed in range(seeds):
        for number, cause in enumerate(CAUSES):
            chosen = family or _FAMILIES[(seed + number) % len(_FAMILIES)]
            # seeds that the laboratory does not use
            yield Scenario(Setting(chosen, "adamw", "fp32", 1000 + seed, steps=steps), cause)


def compute_truths(setting: Setting, scenarios: Iterable[Scenario], folder: Path) -> None:
    """Let the laboratory compute what is not computed yet of a job."""
    causes = tuple(scenario.cause for scenario in scenarios)
    generate(folder, Group(setting, causes, round(ONSET * setting.steps)))

"""Which groups the lab consists of, in an order that keeps every beginning of it balanced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.lab.families import FAMILIES
from benchmarks.lab.faults import FAULTS
from benchmarks.lab.lookalikes import LOOKALIKES
from benchmarks.lab.members import Change
from benchmarks.lab.training import Setting

ROUNDS: Final = 18
"""Groups of each family."""
_FAULTS: Final = 5
_LOOKALIKES: Final = 3
"""Of each in a group."""
_OPTIMIZERS: Final = ("adamw", "muon", "adamw", "sgd", "adamw", "lion")
_ONSETS: Final = (95, 140)


@dataclass(frozen=True)
class Group:
    """A job, and what happens to its twins."""

    setting: Setting
    kinds: tuple[type[Change], ...]
    onset: int


def plan(rounds: int = ROUNDS, steps: int = 360) -> Iterator[Group]:
    """Yield the groups: in every round one of each family.

    Args:
        rounds: Groups of each family.
        steps: Steps of a run.
    """
    for number in range(rounds):
        for place, family in enumerate(FAMILIES):
            generator = np.random.default_rng([number, place])
            setting = Setting(
                family=family,
                optimizer=_OPTIMIZERS[(number + place) % len(_OPTIMIZERS)],
                precision="fp16" if (number + place) % 3 == 1 else "fp32",
                seed=number,
                rate=float(generator.choice([0.5, 1.0, 1.0, 2.0])),
                steps=steps,
            )
            first = number * _FAULTS + 7 * place
            kinds = (
                *(FAULTS[(first + each) % len(FAULTS)] for each in range(_FAULTS)),
                *(
                    LOOKALIKES[(number * _LOOKALIKES + place + each) % len(LOOKALIKES)]
                    for each in range(_LOOKALIKES)
                ),
            )
            yield Group(setting, kinds, int(generator.integers(*_ONSETS)) * steps // 360)

"""The newest samples of the metrics that a command affects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from stabilizer.collector.storage.repositories import Repositories
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.runs import Branch
from stabilizer.protocol.series import SeriesKey

NO_GROUP: Final = "all"
"""Name of the rate of a job without named parameter groups."""

_RECENT_BATCHES: Final = 64
_NEAR_STEPS: Final = 20
"""A rate measured at most this many steps before a target counts as the target's."""

Blocks = Iterable[tuple[int, FrameBlock]]


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates at one place of the live lineage."""

    lr: Mapping[str, float]
    """By parameter group; empty if not measured."""
    scale: float | None
    """lr_scale; None if not measured."""


class Readings:
    """Reads the newest samples of a run, never its history.

    Args:
        repos: Of a session that reads.
        run_id: The run.
        branches: The live part of each attempt.
    """

    def __init__(self, repos: Repositories, run_id: str, branches: Mapping[int, Branch]) -> None:
        self._repos = repos
        self._run_id = run_id
        self._branches = branches

    def rates_now(self) -> Rates:
        """Return the newest rates of the live lineage."""
        slots = self._rate_slots()
        return self._rates(
            slots,
            {
                name: self._repos.frames.newest(self._run_id, name, _RECENT_BATCHES)
                for name in slots
            },
        )

    def rates_at(self, step: int) -> Rates:
        """Return the rates of the live lineage at a step, or shortly before it."""
        slots = self._rate_slots()
        around = (max(0, step - _NEAR_STEPS), step)
        return self._rates(
            slots,
            {name: self._repos.frames.read(self._run_id, name, None, around) for name in slots},
            last_step=step,
        )

    def step_seconds(self) -> float | None:
        """Return the median of recent times of a step, in seconds; None if not measured."""
        found = []
        for catalog_id, keys in self._slots(Metric.STEP_SECONDS).items():
            for _, block in self._repos.frames.newest(self._run_id, catalog_id, _RECENT_BATCHES):
                found += [block.values[_measured(block, slot), slot] for slot in keys.values()]
        values = np.concatenate(found) if found else np.empty(0)
        values = values[np.isfinite(values)]
        return float(np.median(values)) if len(values) else None

    def _slots(self, metric: Metric) -> dict[str, dict[str, int]]:
        """Return the metric's series and their slots, by catalog."""
        by_catalog: dict[str, dict[str, int]] = defaultdict(dict)
        places = self._repos.catalogs.places_of_metric(self._run_id, metric)
        for text, found in places.items():
            for catalog_id, slot in found:
                by_catalog[catalog_id][text] = slot
        return by_catalog

    def _rate_slots(self) -> dict[str, dict[str, int]]:
        slots = self._slots(Metric.LR)
        for catalog_id, found in self._slots(Metric.LR_SCALE).items():
            slots.setdefault(catalog_id, {}).update(found)
        return slots

    def _rates(
        self,
        slots: Mapping[str, Mapping[str, int]],
        blocks: Mapping[str, Blocks],
        last_step: int | None = None,
    ) -> Rates:
        newest: dict[str, tuple[tuple[int, int], float]] = {}
        for catalog_id, of_catalog in blocks.items():
            for attempt, block in of_catalog:
                for text, slot in slots[catalog_id].items():
                    sample = self._last(attempt, block, slot, last_step)
                    if sample is not None and (text not in newest or sample[0] > newest[text][0]):
                        newest[text] = sample
        lr, scale = {}, None
        for text, (_, value) in sorted(newest.items()):
            key = SeriesKey.parse(text)
            if key.metric == Metric.LR:
                lr[key.labels.get("group", NO_GROUP)] = value
            elif not key.labels or scale is None:
                scale = value
        return Rates(lr, scale)

    def _last(
        self, attempt: int, block: FrameBlock, slot: int, last_step: int | None
    ) -> tuple[tuple[int, int], float] | None:
        """Find the last live sample of a block as ((attempt, step), value)."""
        ends = [end for end in (self._branches[attempt].live_to, last_step) if end is not None]
        taken = _measured(block, slot)
        if ends:
            taken = taken & (block.steps <= min(ends))
        found = np.flatnonzero(taken)
        if not len(found):
            return None
        at = found[np.argmax(block.steps[found])]
        # The shortest decimal with the same float32 value: 0.0001, as configured.
        return (attempt, int(block.steps[at])), float(str(block.values[at, slot]))


def _measured(block: FrameBlock, slot: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    if block.present is None:
        return np.ones(len(block), np.bool_)
    present: np.ndarray[tuple[int], np.dtype[np.bool_]] = block.present[:, slot]
    return present

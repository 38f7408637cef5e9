"""The series of one job, as the agent measures and sends them.

The agent's own probes measure loss, gradients, activations and attention. What they do not measure,
the lab logs through them as a job would: losses by source, `param_norm`, `update_ratio` and
`adam_rms` of modules, and the loss scaler's `loss_scale` and `step_skipped`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from benchmarks.lab.corpora import SOURCES
from benchmarks.lab.layout import Part
from benchmarks.lab.members import State
from benchmarks.lab.optimizers import EPSILON
from benchmarks.lab.training import CLIP, SingleRun, StepResult, World
from stabilizer.agent.probes.catalogs import PROJECTIONS
from stabilizer.agent.probes.probe_set import ProbeSet
from stabilizer.protocol.metrics import Kind, Metric
from stabilizer.protocol.series import SeriesKey

SAMPLE_EVERY: Final = 5
"""Steps between two measurements of the modules; the agent measures them at every tenth."""
_TRACKED: Final = PROJECTIONS | {Kind.HEAD, "embedding"}
"""Kinds whose weights and updates are logged."""
_SECOND: Final = "exp_avg_sq"


@dataclass
class Series:
    """Series of a run: a value for each step and series, NaN or Inf where it was so.

    Args:
        keys: The columns.
        steps: [N], completed steps.
        values: [N, K] float32.
        present: [N, K] bool, whether it was measured at that step.
    """

    keys: list[SeriesKey]
    steps: np.ndarray
    values: np.ndarray
    present: np.ndarray


class WatchedRun(SingleRun):
    """One job under the agent's probes."""

    def __init__(self, world: World, state: State) -> None:
        super().__init__(world, state)
        self._probes = ProbeSet(world.model)
        self._probes.attach()
        self._parts = [part for part in world.layout.parts if part.kind in _TRACKED]
        self._owner = torch.full((world.layout.width,), len(self._parts))
        for number, part in enumerate(self._parts):
            self._owner[part.columns] = number
        self._frames: list[tuple[int, Mapping[SeriesKey, float]]] = []

    def advance(self) -> float:
        """Train a step and measure it; return its loss."""
        is_sampled = (self.members[0].step + 1) % SAMPLE_EVERY == 0
        self._probes.begin_step(is_sampled)
        before = self.weights.clone() if is_sampled else None
        result = self.step(self._probes.after_backward)
        self._log(result)
        if before is not None:
            self._log_weights(before[0], skipped=bool(result.skipped[0]))
        self._note()
        return float(result.losses[0].mean())

    def series(self) -> Series:
        """Return what was measured so far."""
        keys = list(dict.fromkeys(key for _, row in self._frames for key in row))
        column = {key: number for number, key in enumerate(keys)}
        values = np.zeros((len(self._frames), len(keys)), np.float32)
        present = np.zeros(values.shape, np.bool_)
        for number, (_, row) in enumerate(self._frames):
            places = [column[key] for key in row]
            values[number, places] = list(row.values())
            present[number, places] = True
        return Series(keys, np.array([step for step, _ in self._frames]), values, present)

    def close(self) -> None:
        """Take the probes off the model."""
        self._probes.detach()

    def _log(self, result: StepResult) -> None:
        losses, sources = result.losses[0], torch.from_numpy(result.sources[0])
        log = self._probes.log
        log(Metric.LOSS, losses.mean())
        log(Metric.LR, result.rates[0], group="0")
        log(Metric.LR_SCALE, 1.0)
        for number, name in enumerate(SOURCES):
            own = losses[sources == number]
            if own.numel():
                log(Metric.LOSS, own.mean(), source=name)
        if self.world.setting.precision != "fp32":
            log("loss_scale", result.scales[0])
            log("step_skipped", float(result.skipped[0]))

    def _log_weights(self, before: Tensor, *, skipped: bool) -> None:
        """Log norms of weights and updates; and adam_rms, of a step that was taken."""
        weights = self.weights[0]
        squares = [before.square(), (weights - before).square()]
        second = self.moments.rows.get(_SECOND)
        if second is not None and not skipped:
            gradients = self.gradients[0]
            clipped = gradients * (CLIP / (gradients.norm() + EPSILON)).clamp(max=1.0)
            corrected = second[0] / (1 - 0.95 ** self.moments.counts[0])
            squares.append(clipped.square() / corrected.clamp(min=EPSILON**2))
        sums = torch.zeros(len(squares), len(self._parts) + 1)
        sums.index_add_(1, self._owner, torch.stack(squares))
        norms = sums.sqrt().tolist()
        for number, part in enumerate(self._parts):
            self._log_part(part, [row[number] for row in norms])

    def _log_part(self, part: Part, norms: list[float]) -> None:
        log, labels = self._probes.log, part.labels
        log("param_norm", norms[0], **labels)
        log("update_ratio", norms[1] / (norms[0] + EPSILON), **labels)
        if len(norms) > 2:
            log("adam_rms", norms[2] / part.columns.numel() ** 0.5, **labels)

    def _note(self) -> None:
        step = self.members[0].step
        row: dict[SeriesKey, float] = {}
        for catalog, block in self._probes.end_step(step, float(step)).blocks():
            present = None if block.present is None else block.present[0]
            for number, key in enumerate(catalog.series):
                if present is None or present[number]:
                    row[key] = float(block.values[0, number])
        self._frames.append((step, row))

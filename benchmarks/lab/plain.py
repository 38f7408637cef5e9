"""Plain runs: all changes of a job at once, with the series that need no probe.

Copies that train as rows of one matrix cost a tenth of a watched run. They have losses, the
gradient norm, the rate and the loss scaler, at every step, as watched runs have; no modules, and no
forks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.lab.corpora import SOURCES
from benchmarks.lab.groups import Curve, LabRun, change_of, healthy_change
from benchmarks.lab.measuring import Series
from benchmarks.lab.members import Change, Member, State
from benchmarks.lab.oracle import is_evaluated
from benchmarks.lab.training import Ensemble, Setting, StepResult, World
from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.series import SeriesKey

_NAMES = (
    SeriesKey(metric=Metric.LOSS),
    SeriesKey(metric=Metric.Z_LOSS),
    SeriesKey(metric=Metric.GRAD_NORM),
    SeriesKey(metric=Metric.LR, labels={"group": "0"}),
    *(SeriesKey(metric=Metric.LOSS, labels={"source": name}) for name in SOURCES),
)
_SCALER = (SeriesKey(metric="loss_scale"), SeriesKey(metric="step_skipped"))


class PlainRuns:
    """Copies of a job and what was measured of each."""

    def __init__(self, world: World, states: Sequence[State]) -> None:
        self.ensemble = Ensemble(world, states)
        self.curves: list[Curve] = [{} for _ in states]
        self._world = world
        self._keys = [*_NAMES, *(_SCALER if world.setting.precision == "fp16" else ())]
        self._steps: list[int] = []
        self._rows: list[np.ndarray] = []

    def train(self, until: int) -> None:
        """Train all copies up to a step."""
        end = self._world.setting.steps
        while (step := self.ensemble.members[0].step) < until:
            norms: list[float] = []
            result = self.ensemble.step(
                lambda: norms.extend(self.ensemble.gradients.norm(dim=1).tolist())  # noqa: B023  called in this turn
            )
            self._steps.append(step + 1)
            self._rows.append(self._measured(result, norms))
            if is_evaluated(step + 1, end):
                losses = self._world.evaluate(self.ensemble.weights)
                for curve, loss in zip(self.curves, losses, strict=True):
                    curve[step + 1] = loss

    def series(self, index: int) -> Series:
        """Return the series of a copy."""
        values = np.array([rows[index] for rows in self._rows], np.float32)
        is_source = np.array([key.labels.keys() == {"source"} for key in self._keys])
        present = ~(np.isnan(values) & is_source)  # no sample of that source; else NaN is data
        return Series(self._keys, np.array(self._steps), values, present)

    def _measured(self, result: StepResult, norms: list[float]) -> np.ndarray:
        losses = result.losses.numpy()
        columns = [losses.mean(axis=1), result.z.numpy(), np.array(norms), np.array(result.rates)]
        for number in range(len(SOURCES)):
            own = result.sources == number
            count = own.sum(axis=1)
            total = np.where(own, losses, 0.0).sum(axis=1)
            columns.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
        if self._world.setting.precision == "fp16":
            columns += [np.array(result.scales), result.skipped.numpy().astype(float)]
        return np.stack(columns, axis=1)


def run_plain(setting: Setting, kinds: Sequence[type[Change]], onset: int) -> Iterator[LabRun]:
    """Train a healthy job, which is yielded first, and copies of it."""
    world = World(setting)
    healthy = healthy_change(setting)
    before = PlainRuns(world, [world.first_state(Member(healthy))])
    before.train(onset)
    start = before.ensemble.state()
    changes = [healthy, *(change_of(setting, kind, onset) for kind in kinds if kind.applies(world))]
    states = []
    for change in changes:
        member = start.member.copy()
        member.change = change
        states.append(State(member, start.weights, start.moments))
    after = PlainRuns(world, states)
    after.train(setting.steps)
    for index, change in enumerate(changes):
        series, curve = after.series(index), before.curves[0] | after.curves[index]
        if change is healthy:
            yield LabRun(setting, change, 0, _joined(before.series(0), series), curve)
        else:
            yield LabRun(setting, change, onset, series, curve)


def _joined(first: Series, second: Series) -> Series:
    return Series(
        first.keys,
        np.concatenate([first.steps, second.steps]),
        np.concatenate([first.values, second.values]),
        np.concatenate([first.present, second.present]),
    )

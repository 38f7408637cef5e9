"""Detectors in plain floats decide, score and save as those on arrays, to the bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabilizer.rules.detector_specs import DetectSpec
from stabilizer.rules.detectors import build_detector
from stabilizer.rules.detectors.interface import Detector
from stabilizer.rules.detectors.scalar import build_scalar_detector
from stabilizer.rules.detectors.scalar.interface import ScalarDetector

DETECTS = {
    "nonfinite": {"nonfinite": {}},
    "threshold": {"threshold": {"below": 1.5}},
    "fallen": {"fallen": {"share": 0.9, "under": 1.0, "early": 20}},
    "stuck": {"stuck": {"steps": 3, "samples": 2}},
    "spike": {"spike": {"window": 8, "above": 2, "direction": "both", "relearn": 5}},
    "spike_down": {"spike": {"window": 8, "above": 3, "direction": "down", "min_samples": 3}},
    "zscore": {"robust_zscore": {"window": 16, "above": 2, "relearn": 6, "two_sided": True}},
    "zscore_log": {"robust_zscore": {"window": 9, "above": 1, "scale": "log", "min_samples": 2}},
    "rise": {"rise": {"above": 2, "smooth": 1, "window": 20, "ready": 4, "relearn": 12}},
    "rise_down": {"rise": {"above": 2, "smooth": 8, "window": 40, "ready": 4, "direction": "down"}},
    "rise_log": {
        "rise": {"above": 1, "smooth": 4, "scale": "log", "direction": "both", "heal_within": 30}
    },
    "rise_least": {"rise": {"above": 1, "smooth": 4, "window": 30, "least": 0.05, "floor": 0.1}},
}
MOST = 3


@dataclass(frozen=True)
class Event:
    """What happens before a step: nothing, or one of `KINDS`."""

    kind: str
    gap: int
    values: tuple[float, ...]
    present: tuple[bool, ...]


KINDS = ("", "", "", "", "", "", "", "", "rewind", "forget", "save", "swap", "grow")
numbers = st.one_of(
    st.floats(0.5, 4.0, width=32),
    st.sampled_from([0.0, -0.0, 1.0, 2.0, -3.0, float("nan"), float("inf"), 3e38]),
)


@st.composite
def events(draw: st.DrawFn) -> list[Event]:
    """Draw a series of steps: a seeded random walk with odd values and events in it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    walk = 2 + np.cumsum(0.02 * rng.standard_normal((draw(st.integers(5, 150)), MOST)), axis=0)
    walk[:, 1] += 3 * (rng.random(len(walk)) < 0.1)
    walk[len(walk) // 2 :, 0] += draw(st.sampled_from([0.0, 0.1, 1.0]))
    odd = draw(st.lists(st.tuples(st.integers(0, len(walk) - 1), numbers), max_size=8))
    for at, number in odd:
        walk[at, at % MOST] = number
    kinds = rng.choice(KINDS, len(walk)) if draw(st.booleans()) else [""] * len(walk)
    gaps = rng.choice([1, 1, 1, 2, 10, 100], len(walk)) if draw(st.booleans()) else [1] * len(walk)
    present = rng.random(walk.shape) < draw(st.sampled_from([0.5, 0.9, 1.0]))
    return [
        Event(str(kind), int(gap), tuple(map(float, np.float32(row))), tuple(map(bool, there)))
        for kind, gap, row, there in zip(kinds, gaps, walk, present, strict=True)
    ]


class Pair:
    """The same detector on arrays and in floats, fed alike."""

    def __init__(self, detect: dict, num_series: int) -> None:
        self.spec = DetectSpec.model_validate(detect).detector
        self.arrays, self.floats = self.build()
        self.num_series = num_series
        self.step = 0
        self.resize()

    def build(self) -> tuple[Detector, ScalarDetector]:
        floats = build_scalar_detector(self.spec)
        assert floats is not None
        return build_detector(self.spec), floats

    def resize(self) -> None:
        self.arrays.resize(self.num_series)
        self.floats.resize(self.num_series)

    def meet(self, event: Event) -> None:
        if event.kind == "rewind":
            self.step = max(0, self.step - 7)
            self.arrays.rewind(self.step)
            self.floats.rewind(self.step)
        elif event.kind == "forget":
            self.arrays.forget()
            self.floats.forget()
        elif event.kind in {"save", "swap"}:
            self.reload(swap=event.kind == "swap")
        elif event.kind == "grow" and self.num_series < MOST:
            self.num_series += 1
            self.resize()
        self.see(event)

    def reload(self, *, swap: bool) -> None:
        states = [
            {name: array.copy() for name, array in detector.state().items()}
            for detector in (self.arrays, self.floats)
        ]
        self.arrays, self.floats = self.build()
        self.arrays.load(states[swap])
        self.floats.load(states[not swap])

    def see(self, event: Event) -> None:
        self.step += event.gap
        values = np.array(event.values[: self.num_series])
        present = np.array(event.present[: self.num_series])
        samples = [(row, values.item(row)) for row in np.flatnonzero(present).tolist()]
        if not samples:
            return
        with np.errstate(all="ignore"):
            verdict = self.arrays.update(self.step, values, present)
            judgements = self.floats.update(self.step, samples)
        rows = [judgement.row for judgement in judgements]
        assert rows == np.flatnonzero(verdict.known).tolist()
        assert [j.is_flagged for j in judgements] == verdict.flagged[rows].tolist()
        np.testing.assert_array_equal([j.score for j in judgements], verdict.score[rows])
        assert self.arrays.learned() == self.floats.learned()

    def compare_states(self) -> None:
        mine, other = self.floats.state(), self.arrays.state()
        assert set(mine) == set(other)
        for name, array in other.items():
            np.testing.assert_array_equal(mine[name], array, err_msg=name)


@pytest.mark.parametrize("name", DETECTS)
@settings(deadline=None, max_examples=60)
@given(steps=events(), num_series=st.integers(1, MOST))
def test_floats_decide_as_arrays(name: str, steps: list[Event], num_series: int):
    pair = Pair(DETECTS[name], num_series)
    assert pair.arrays.threshold == pair.floats.threshold
    for event in steps:
        pair.meet(event)
        if event.kind:
            pair.compare_states()
    pair.compare_states()

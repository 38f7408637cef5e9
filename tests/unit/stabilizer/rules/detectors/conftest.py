"""Every detector with a healthy series and the shape it is made for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from stabilizer.rules.detector_specs import DetectSpec
from stabilizer.rules.detectors import build_detector
from stabilizer.rules.detectors.interface import Detector


@dataclass(frozen=True)
class Case:
    """A detector, 400 healthy samples, and 60 that follow them and must be flagged at some time."""

    name: str
    detect: dict
    healthy: np.ndarray
    shape: np.ndarray
    learns: bool = True

    def build(self, num_series: int = 1) -> Detector:
        detector = build_detector(DetectSpec.model_validate(self.detect).detector)
        detector.resize(num_series)
        return detector


def _noise(seed: int, size: int, scale: float) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal(size)


FALLING = 2 + np.exp(-np.arange(400) / 100) + _noise(1, 400, 0.02)
CREEPING = FALLING[-1] + 0.01 * np.arange(60) + _noise(2, 60, 0.02)
NORMS = np.exp(_noise(3, 400, 0.1))
EXPLODING = np.exp(0.2 * np.arange(60) + _noise(4, 60, 0.1))
ENTROPY = 0.6 + _noise(5, 400, 0.01)
COLLAPSING = 0.6 * 0.9 ** np.arange(60) + _noise(6, 60, 0.001)
Z_LOSS = 17 - 0.005 * np.arange(400) + _noise(7, 400, 0.2)
INVERSE = np.concatenate([Z_LOSS[-5:], [9.7, 9.8, 9.9], Z_LOSS[-5:]])

CASES = [
    Case("nonfinite", {"nonfinite": {}}, FALLING, np.array([1.0, np.nan]), learns=False),
    Case("above", {"threshold": {"above": 5}}, NORMS, EXPLODING, learns=False),
    Case("below", {"threshold": {"below": 0.05}}, ENTROPY, COLLAPSING, learns=False),
    Case(
        "robust_zscore",
        {"robust_zscore": {"window": 64, "above": 8, "scale": "log"}},
        NORMS,
        EXPLODING,
    ),
    Case("linear", {"robust_zscore": {"window": 64, "above": 8}}, FALLING, FALLING[-1] + EXPLODING),
    Case("drift", {"drift": {"window": 100, "above": 0.03}}, FALLING, CREEPING),
    Case(
        "drift_down",
        {"drift": {"window": 100, "above": 0.03, "direction": "down"}},
        5 - FALLING,
        5 - CREEPING - 0.02 * np.arange(60),
    ),
    Case("collapse", {"collapse": {"window": 64, "below": 0.2}}, ENTROPY, COLLAPSING),
    Case("rise", {"rise": {"window": 200, "above": 6}}, FALLING, CREEPING),
    Case(
        "rise_log",
        {"rise": {"window": 200, "above": 6, "scale": "log", "direction": "both", "floor": 0.05}},
        NORMS,
        1 / EXPLODING,
    ),
    Case(
        "fallen",
        {"fallen": {"share": 0.5, "early": 100}},
        ENTROPY,
        COLLAPSING,
        learns=False,
    ),
    Case(
        "forecast",
        {"forecast": {"above": 1e4, "within": 200, "window": 60, "scale": "log"}},
        NORMS,
        EXPLODING,
        learns=False,
    ),
    Case(
        "shift",
        {"shift": {"window": 80, "hold": 20, "direction": "both"}},
        ENTROPY,
        0.5 + _noise(8, 60, 0.01),
        learns=False,
    ),
    Case("stuck", {"stuck": {"steps": 30}}, FALLING, np.zeros(60), learns=False),
    Case("spike", {"spike": {"window": 32, "above": 6, "direction": "down"}}, Z_LOSS, INVERSE),
]
LEARNING = [case for case in CASES if case.learns]


def _name(case: Case) -> str:
    return case.name


@pytest.fixture(params=CASES, ids=_name)
def case(request) -> Case:
    return request.param


@pytest.fixture
def cases() -> dict[str, Case]:
    return {case.name: case for case in CASES}


@pytest.fixture(params=LEARNING, ids=_name)
def learning(request) -> Case:
    return request.param


def flags_of(detector: Detector, samples: np.ndarray, start: int = 1) -> np.ndarray:
    """Feed samples, shape [T] or [T, N]; return what was flagged, shape [T, N]."""
    rows = np.asarray(samples, np.float64).reshape(len(samples), -1)
    everything = np.ones(rows.shape[1], np.bool_)
    with np.errstate(all="ignore"):
        verdicts = [detector.update(start + i, row, everything) for i, row in enumerate(rows)]
    return np.array([verdict.flagged for verdict in verdicts]).reshape(rows.shape)


@pytest.fixture
def feed() -> Callable[..., np.ndarray]:
    return flags_of

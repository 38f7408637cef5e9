"""Detectors: one condition each, on every series of a rule at once.

`build_detector` makes the one that a rule asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from stabilizer.rules.detector_specs import (
    AbsentSpec,
    CollapseSpec,
    DetectorSpec,
    DriftSpec,
    FallenSpec,
    ForecastSpec,
    NonfiniteSpec,
    RiseSpec,
    RobustZscoreSpec,
    ShiftSpec,
    SpikeSpec,
    StuckSpec,
    ThresholdSpec,
)
from stabilizer.rules.detectors.absent import Absent
from stabilizer.rules.detectors.collapse import Collapse
from stabilizer.rules.detectors.drift import Drift
from stabilizer.rules.detectors.forecast import Forecast
from stabilizer.rules.detectors.interface import Detector
from stabilizer.rules.detectors.rise import Rise
from stabilizer.rules.detectors.robust_zscore import RobustZscore
from stabilizer.rules.detectors.shift import Shift
from stabilizer.rules.detectors.simple import Fallen, Nonfinite, Stuck, Threshold
from stabilizer.rules.detectors.spike import Spike

_DETECTORS: Final[dict[type[DetectorSpec], Callable[[Any], Detector]]] = {
    AbsentSpec: Absent,
    CollapseSpec: Collapse,
    DriftSpec: Drift,
    FallenSpec: Fallen,
    ForecastSpec: Forecast,
    RiseSpec: Rise,
    RobustZscoreSpec: RobustZscore,
    ShiftSpec: Shift,
    SpikeSpec: Spike,
    StuckSpec: Stuck,
    ThresholdSpec: Threshold,
    NonfiniteSpec: lambda _spec: Nonfinite(),
}


def build_detector(spec: DetectorSpec) -> Detector:
    """Make the detector that a rule declares, without series yet."""
    return _DETECTORS[type(spec)](spec)

"""Detectors: one condition each, on every series of a rule at once.

`build_detector` makes the one that a rule asks for.
"""

from __future__ import annotations

from stabilizer.rules.detectors.collapse import Collapse
from stabilizer.rules.detectors.drift import Drift
from stabilizer.rules.detectors.interface import Detector
from stabilizer.rules.detectors.nonfinite import Nonfinite
from stabilizer.rules.detectors.robust_zscore import RobustZscore
from stabilizer.rules.detectors.spike import Spike
from stabilizer.rules.detectors.threshold import Threshold
from stabilizer.rules.spec import (
    CollapseSpec,
    DetectorSpec,
    DriftSpec,
    RobustZscoreSpec,
    SpikeSpec,
    ThresholdSpec,
)


def build_detector(spec: DetectorSpec) -> Detector:
    """Make the detector that a rule declares, without series yet."""
    match spec:
        case ThresholdSpec():
            return Threshold(spec)
        case RobustZscoreSpec():
            return RobustZscore(spec)
        case DriftSpec():
            return Drift(spec)
        case CollapseSpec():
            return Collapse(spec)
        case SpikeSpec():
            return Spike(spec)
        case _:
            return Nonfinite()

"""Detectors in plain floats, for rules on a few series.

A call of numpy costs a microsecond whatever the size of its arrays, so that most of the time of a
rule on one series is spent on calls. These detectors give the same decisions, scores and states as
those on arrays, to the bit, which stay the definition; a state saved by one is loaded by the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from stabilizer.rules.detector_specs import (
    DetectorSpec,
    FallenSpec,
    NonfiniteSpec,
    RiseSpec,
    RobustZscoreSpec,
    SpikeSpec,
    StuckSpec,
    ThresholdSpec,
)
from stabilizer.rules.detectors.scalar.interface import ScalarDetector
from stabilizer.rules.detectors.scalar.rise import ScalarRise
from stabilizer.rules.detectors.scalar.robust_zscore import ScalarRobustZscore
from stabilizer.rules.detectors.scalar.simple import (
    ScalarFallen,
    ScalarNonfinite,
    ScalarStuck,
    ScalarThreshold,
)
from stabilizer.rules.detectors.scalar.spike import ScalarSpike

MOST_SERIES: Final = 8
"""Beyond so many series arrays are faster."""

_DETECTORS: Final[dict[type[DetectorSpec], Callable[[Any], ScalarDetector]]] = {
    FallenSpec: ScalarFallen,
    RiseSpec: ScalarRise,
    RobustZscoreSpec: ScalarRobustZscore,
    SpikeSpec: ScalarSpike,
    StuckSpec: ScalarStuck,
    ThresholdSpec: ScalarThreshold,
    NonfiniteSpec: lambda _spec: ScalarNonfinite(),
}


def build_scalar_detector(spec: DetectorSpec) -> ScalarDetector | None:
    """Make the detector that a rule declares, without series yet; None if there is only arrays."""
    build = _DETECTORS.get(type(spec))
    return None if build is None else build(spec)

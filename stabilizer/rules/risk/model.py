"""The risk of a run: how likely it is not to recover within `HORIZON` steps by itself.

A logistic model weighs features of the run; its constants are in model.json, which `make fit-risk`
writes from the laboratory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

from stabilizer.rules.risk.features import FEATURES

METRIC: Final = "risk"
"""The series that rules select."""
HORIZON: Final = 100
"""Steps within which a run recovers or not."""
_SIGNALS: Final = 3


@dataclass(frozen=True, slots=True)
class Risk:
    """The risk at a step.

    Args:
        probability: Of not recovering within `HORIZON` steps without action.
        signals: The features that raise it most, with their parts of its log-odds.
    """

    probability: float
    signals: tuple[tuple[str, float], ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as pages and the API show it."""
        signals = [{"name": name, "weight": round(part, 3)} for name, part in self.signals]
        return {
            "probability": round(self.probability, 4),
            "horizon": HORIZON,
            "signals": signals,
        }


@dataclass(frozen=True)
class RiskModel:
    """A fitted logistic model; feature by feature in the order of `FEATURES`."""

    intercept: float
    weights: tuple[float, ...]

    def assess(self, features: Sequence[float]) -> Risk:
        """Return the risk of a run with these features."""
        parts = [w * x for w, x in zip(self.weights, features, strict=True)]
        odds = min(30.0, max(-30.0, self.intercept + sum(parts)))
        order = sorted(zip(FEATURES, parts, strict=True), key=lambda item: -item[1])
        signals = tuple(item for item in order[:_SIGNALS] if item[1] > 0.1)
        return Risk(1.0 / (1.0 + math.exp(-odds)), signals)


@cache
def default_model() -> RiskModel:
    """Return the model that ships."""
    content = json.loads(files("stabilizer.rules.risk").joinpath("model.json").read_text())
    weights = tuple(float(content["weights"][name]) for name in FEATURES)
    return RiskModel(float(content["intercept"]), weights)

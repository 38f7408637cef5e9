"""Inside the training job: measures, reports, applies commands."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stabilizer.agent.control.limits import Limits
    from stabilizer.agent.integrations.job import Job
    from stabilizer.agent.integrations.lightning import StabilizerCallback
    from stabilizer.agent.integrations.loop import LoopJob, watch
    from stabilizer.agent.integrations.transformers import WatchedTrainer, watch_trainer

__all__ = [
    "Job",
    "Limits",
    "LoopJob",
    "StabilizerCallback",
    "WatchedTrainer",
    "watch",
    "watch_trainer",
]

_HOMES = {
    "Job": "integrations.job",
    "Limits": "control.limits",
    "LoopJob": "integrations.loop",
    "StabilizerCallback": "integrations.lightning",
    "WatchedTrainer": "integrations.transformers",
    "watch": "integrations.loop",
    "watch_trainer": "integrations.transformers",
}


def __getattr__(name: str) -> object:
    """Load an integration when it is asked for: its framework may not be installed."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Inside the training job: measures, reports, obeys."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stabilizer.agent.integrations.job import Job
    from stabilizer.agent.integrations.lightning import StabilizerCallback

__all__ = ["Job", "StabilizerCallback"]


def __getattr__(name: str) -> object:
    """Load an integration when it is asked for: its framework may not be installed."""
    if name == "StabilizerCallback":
        from stabilizer.agent.integrations.lightning import StabilizerCallback  # noqa: PLC0415  lazy

        return StabilizerCallback
    if name == "Job":
        from stabilizer.agent.integrations.job import Job  # noqa: PLC0415  lazy

        return Job
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

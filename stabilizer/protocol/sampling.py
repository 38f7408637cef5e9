"""How often a job measures."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class SamplingPlan(BaseModel):
    """Every how many steps the module statistics are measured.

    Loss, z_loss, the global gradient norm, lr and step_seconds are measured at every step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Steps between two measurements of the modules."""
    burst_until_step: Annotated[int, Field(ge=0)] | None = None
    """Measure the modules at every step up to this one; None for no burst."""

    def is_sampled(self, step: int) -> bool:
        """Tell whether the modules are measured at this step (completed optimizer steps)."""
        in_burst = self.burst_until_step is not None and step <= self.burst_until_step
        return in_burst or step % self.every == 0

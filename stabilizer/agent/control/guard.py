"""The guard on the device: a step whose gradients hold NaN or Inf can be left out.

It acts alone, without collector or rules. As shipped (`OBSERVE`) it leaves the step to the job,
and the probes count what is not finite: many precision settings skip such steps themselves (a
gradient scaler does), and a job must be asked before its updates change. With `SKIP_STEP` such a
step updates nothing: the gradients are set to None before the optimizer's step, so that neither
weights, nor moments, nor weight decay move. Multiplying by a zero flag, or `torch.where` on
gradients, would still let NaN into the moments (NaN times zero) or decay them. That decision is the
host's and costs one wait for the device per step. After a distributed backward all ranks hold the
same gradients and so decide the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from torch import Tensor, nn

from stabilizer.agent.control.host_copy import is_finite


class GuardPolicy(StrEnum):
    """What the guard does about gradients that are not finite."""

    OBSERVE = "observe"
    SKIP_STEP = "skip_step"


class NonfiniteGuard:
    """Leaves out steps whose gradients are not finite, if asked to."""

    def __init__(self, policy: GuardPolicy = GuardPolicy.OBSERVE) -> None:
        self.policy = policy
        self.skipped_steps = 0

    def act(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Look at the gradients after the last backward, before the optimizer's step.

        Returns:
            Whether the step was left out: no parameter has a gradient any more.
        """
        if self.policy is GuardPolicy.OBSERVE:
            return False
        held = [parameter for parameter in parameters if parameter.grad is not None]
        if is_finite(_values(parameter) for parameter in held):
            return False
        for parameter in held:
            parameter.grad = None
        self.skipped_steps += 1
        return True


def _values(parameter: nn.Parameter) -> Tensor:
    """The stored values of a gradient, which may be sparse."""
    gradient = parameter.grad if parameter.grad is not None else parameter.new_zeros(())
    return gradient.coalesce().values() if gradient.is_sparse else gradient

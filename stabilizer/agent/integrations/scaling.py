"""What a loss scaler does in a step, read without waiting for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class LossScaling:
    """What a loss scaler did in a step.

    Args:
        scale: Its factor after the step.
        skipped: 1 if it left the step out, on the device; None to count calls of the optimizer,
            which tell it for every optimizer that the scaler itself holds back.
    """

    scale: Tensor | float
    skipped: Tensor | None = None


class ScalerWatch:
    """Watches a loss scaler.

    Most optimizers are unscaled before the step and not called for a step that is left out. Fused
    ones unscale themselves: their gradients still carry the factor, and they are called always.

    Args:
        scaler: A `torch.amp.GradScaler`, or None.
    """

    def __init__(self, scaler: Any) -> None:  # noqa: ANN401  any of torch's scalers
        self._scaler = scaler if hasattr(scaler, "get_scale") else None
        self._before: Tensor | None = None

    def before_step(self, optimizer: Optimizer) -> Tensor | None:
        """Return the factor that the gradients still carry; None if they do not."""
        self._before = None
        scale = getattr(self._scaler, "_scale", None)
        if not isinstance(scale, Tensor) or self._has_unscaled(optimizer):
            return None
        carried = scale.detach().clone()  # changed in place
        if _unscales_itself(optimizer):
            self._before = carried
        return carried

    def _has_unscaled(self, optimizer: Optimizer) -> bool:
        if _unscales_itself(optimizer):
            return False
        states = getattr(self._scaler, "_per_optimizer_states", {})
        return id(optimizer) in states and states[id(optimizer)]["stage"] is not OptState.READY

    def after_step(self) -> LossScaling | None:
        """Return what the scaler did; None without one."""
        if self._scaler is None:
            return None
        scale = getattr(self._scaler, "_scale", None)
        if not isinstance(scale, Tensor):  # it has scaled nothing yet
            return LossScaling(scale=float(self._scaler.get_scale()))
        # Only a step that was left out lowers the scale.
        skipped = None if self._before is None else (scale < self._before).float()
        return LossScaling(scale=scale.detach().clone(), skipped=skipped)


def _unscales_itself(optimizer: Optimizer) -> bool:
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))

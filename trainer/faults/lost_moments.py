"""Adam's moments are lost, as after a resume that loads the weights alone."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import torch
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from stabilizer.errors import ConfigurationError
from trainer.faults.step_fault import StepFault

Which: TypeAlias = Literal["first", "second", "both"]

_FIRST: Final = ("exp_avg", "momentum_buffer")
_SECOND: Final = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
_NAMES: Final[dict[Which, tuple[str, ...]]] = {
    "first": _FIRST,
    "second": _SECOND,
    "both": (*_FIRST, *_SECOND),
}


class LostMoments(StepFault):
    """After `step` completed steps the optimizers' moments are 0.

    With `keep_count` the optimizer's own count of steps stays, so that Adam corrects no bias. Late
    in training, with the second moments lost alone, the next step is sqrt(1 / (1 - beta2)) times
    too large: 32 times with beta2 0.999, 4.5 times with 0.95. With both lost it is
    (1 - beta1) / sqrt(1 - beta2): 3.2 times, or no more than half.
    """

    name = "lost_moments"

    def __init__(self, *, step: int, which: Which = "second", keep_count: bool = True) -> None:
        """Say when, what, and whether the optimizer notices.

        Args:
            step: Completed optimizer steps after which it happens.
            which: The mean of gradients, the mean of their squares, or both.
            keep_count: Keep the count of steps.

        Raises:
            ValueError: The step is below 1.
        """
        super().__init__(step)
        self._names = _NAMES[which]
        self._which = which
        self._keep_count = keep_count

    @override
    @torch.no_grad()
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Forget.

        Raises:
            ConfigurationError: No optimizer keeps such moments.
        """
        count = 0
        for optimizer in trainer.optimizers:
            for state in optimizer.state.values():
                lost = [name for name in self._names if isinstance(state.get(name), torch.Tensor)]
                count += len(lost)
                for name in [*lost, *(() if self._keep_count else ("step",))]:
                    if isinstance(state.get(name), torch.Tensor):
                        state[name].zero_()
        if not count:
            raise ConfigurationError(f"faults.{self.name}: the optimizers keep no such moments")
        return f"{count} moments ({self._which}) of the optimizer lost"

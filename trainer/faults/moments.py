"""Adam's moments that are wrong: lost, or those of an earlier step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError
from typing_extensions import override

from stabilizer.errors import ConfigurationError
from trainer.faults.base import SETTINGS, StepFault

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor
    from torch.optim import Optimizer

Which: TypeAlias = Literal["first", "second", "both"]

_FIRST: Final = ("exp_avg", "momentum_buffer")
_SECOND: Final = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
_NAMES: Final[dict[Which, tuple[str, ...]]] = {
    "first": _FIRST,
    "second": _SECOND,
    "both": (*_FIRST, *_SECOND),
}

_Moments: TypeAlias = "dict[Tensor, dict[str, Tensor]]"
"""Of one optimizer, by parameter and name."""


@dataclass(kw_only=True, config=SETTINGS)
class LostMoments(StepFault):
    """Adam's moments are lost, as after a resume that loads the weights alone.

    After `step` completed steps the moments are 0. Late in training, with the second moments lost
    alone, the next step is sqrt(1 / (1 - beta2)) times too large: 32 times with beta2 0.999, 4.5
    times with 0.95. With both lost it is (1 - beta1) / sqrt(1 - beta2): 3.2 times, or no more than
    half.
    """

    name: ClassVar[str] = "lost_moments"

    which: Which = "second"
    """The mean of gradients, the mean of their squares, or both."""
    keep_count: bool = True
    """The optimizer keeps its count of steps, so that it corrects no bias: with the second moments
    lost, the next steps are sqrt(1 / (1 - beta2)) times too large."""

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Set the moments to 0.

        Raises:
            ConfigurationError: No optimizer keeps such moments.
        """
        import torch  # noqa: PLC0415  not for the configuration alone

        count = 0
        for optimizer in trainer.optimizers:
            for state in optimizer.state.values():
                names = _NAMES[self.which]
                lost = [name for name in names if isinstance(state.get(name), torch.Tensor)]
                count += len(lost)
                for name in [*lost, *(() if self.keep_count else ("step",))]:
                    if isinstance(state.get(name), torch.Tensor):
                        state[name].zero_()
        if not count:
            raise ConfigurationError(f"faults.{self.name}: the optimizers keep no such moments")
        return f"{count} moments ({self.which}) of the optimizer lost"


@dataclass(kw_only=True, config=SETTINGS)
class StaleMoments(StepFault):
    """Adam's moments become those of an earlier step, as after a resume from two checkpoints.

    The weights and the optimizer's count of steps stay. The copy is held on the host meanwhile.
    """

    name: ClassVar[str] = "stale_moments"

    age: int = Field(default=50, ge=1, validate_default=True)
    """Steps by which the moments are too old; fewer than `step`."""

    @field_validator("age")
    @classmethod
    def _is_after_the_start(cls, age: int, info: ValidationInfo) -> int:
        step = info.data.get("step")
        if step is not None and age >= step:
            raise PydanticCustomError("age", f"allowed: fewer than faults.{cls.name}.step ({step})")
        return age

    @override
    def __post_init__(self) -> None:
        """Start without a copy."""
        super().__post_init__()
        self._kept_at = 0
        self._kept: list[_Moments] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset."""
        super().setup(trainer, pl_module, stage)
        self._kept = []

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Copy the moments `age` steps before the fault, and put them back at the fault."""
        now = trainer.global_step
        if not self.fired and not self._kept and self.step - self.age <= now < self.step:
            self._kept_at = now
            self._kept = [_copy(optimizer) for optimizer in trainer.optimizers]
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Replace the moments by the old ones.

        Raises:
            ConfigurationError: The optimizers keep none.
        """
        kept, self._kept = self._kept, []
        count = 0
        for optimizer, moments in zip(trainer.optimizers, kept, strict=False):
            for parameter, values in moments.items():
                for name, old in values.items():
                    optimizer.state[parameter][name].copy_(old)
                    count += 1
        if not count:
            raise ConfigurationError(f"faults.{self.name}: the optimizers keep no moments")
        return f"{count} moments of the optimizer are those of step {self._kept_at}"


def _copy(optimizer: Optimizer) -> _Moments:
    """Copy to the host all tensors of the state but the counts of steps."""
    from torch import Tensor  # noqa: PLC0415  not for the configuration alone

    return {
        parameter: {
            name: value.detach().to("cpu", copy=True)
            for name, value in state.items()
            if isinstance(value, Tensor) and name != "step"
        }
        for parameter, state in optimizer.state.items()
    }

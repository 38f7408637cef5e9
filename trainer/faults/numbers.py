"""Numbers that leave their range: drifting logits, overflow in fp16, a NaN in a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from typing_extensions import override

from stabilizer.errors import ConfigurationError
from trainer.faults.base import (
    SETTINGS,
    Factor,
    PassingFault,
    StepFault,
    find_module,
    find_parameters,
)

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


@dataclass(kw_only=True, config=SETTINGS)
class HookedFault(PassingFault):
    """A passing fault that changes the output of a module by a forward hook."""

    @override
    def __post_init__(self) -> None:
        """Start without a hook."""
        super().__post_init__()
        self._hook: RemovableHandle | None = None

    def _change_output_of(self, module: nn.Module) -> None:
        self._hook = module.register_forward_hook(self._change)

    @override
    def cease(self) -> None:
        """Remove the hook."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _change(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(kw_only=True, config=SETTINGS)
class LogitDrift(HookedFault):
    """The logits drift away from zero, rounded to bf16.

    From `step` on the output of the head gains `per_step` more at each step. A constant added to
    all logits changes no probability, so only z-loss holds them back; but bf16 has 8 bits, so that
    its steps are 2 near 256 and 8 near 1024 (z-loss: PaLM, arXiv:2204.02311; the IDEFICS talk).
    The output keeps its number format, so this shows in an fp32 job as well. It ends when the job
    is rewound, or after `steps`.
    """

    name: ClassVar[str] = "logit_drift"

    per_step: Annotated[float, Field(ge=-1e6, le=1e6)] = 16.0
    """Added to every logit, more at each step."""
    head: str = "lm_head"
    """Dotted name of the module that makes the logits, or its end."""

    @override
    def __post_init__(self) -> None:
        """Start without an offset."""
        super().__post_init__()
        self._offset = 0.0

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin or end it; increase the offset."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._offset = self.per_step * (trainer.global_step - self.step + 1)

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Begin.

        Raises:
            ConfigurationError: There is no such head.
        """
        self._change_output_of(find_module(module, self.head, f"faults.{self.name}.head"))
        return f"logits drift by {self.per_step:g} per step, rounded to bf16"

    @override
    def _change(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return (output + self._offset).bfloat16().to(output.dtype)


@dataclass(kw_only=True, config=SETTINGS)
class Fp16Overflow(HookedFault):
    """The output of a module is too large for fp16, for some steps.

    With a loss scaler (precision fp16) such a step is skipped and the scale is halved; without one
    the infinities reach the weights. The output keeps its number format, so this happens in any
    precision.
    """

    name: ClassVar[str] = "fp16_overflow"

    module: str = "model.layers.0.mlp.down_proj"
    """Dotted name of a module that gives one tensor, or its end."""
    factor: Factor = 1e6
    """Multiplier on the output; beyond 65504 it is infinite."""
    steps: Annotated[int, Field(ge=1)] = 1
    """Number of steps that it lasts."""

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Begin.

        Raises:
            ConfigurationError: There is no such module.
        """
        self._change_output_of(find_module(module, self.module, f"faults.{self.name}.module"))
        return f"output of {self.module} multiplied by {self.factor:g}, in fp16"

    @override
    def _change(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return (output.float() * self.factor).half().to(output.dtype)


@dataclass(kw_only=True, config=SETTINGS)
class NanGradient(StepFault):
    """One element of a gradient is NaN, in one step.

    It is written before the gradients are measured or clipped: clipping by the global norm makes
    all of them NaN. A loss scaler (precision fp16) skips such a step.
    """

    name: ClassVar[str] = "nan_gradient"

    module: str = "lm_head"
    """Dotted name of the module whose gradient it is, or its end."""

    @override
    def __post_init__(self) -> None:
        """Start with nothing to write."""
        super().__post_init__()
        self._is_pending = False

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Wait for the gradients of this step.

        Raises:
            ConfigurationError: There is no such module, or it is not trained.
        """
        parameters = find_parameters(module, self.module, f"faults.{self.name}.module")
        if not any(parameter.requires_grad for parameter in parameters):
            raise ConfigurationError(
                f"faults.{self.name}.module: {self.module!r} cannot be used; allowed: a module "
                "that is trained"
            )
        self._is_pending = True
        return f"a NaN in the gradient of {self.module or 'the model'}"

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        if not self._is_pending:
            return
        for parameter in find_parameters(pl_module, self.module, f"faults.{self.name}.module"):
            gradient = parameter.grad
            if gradient is not None:
                local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
                if local.numel():
                    local.view(-1)[0] = float("nan")
                    self._is_pending = False
                    return

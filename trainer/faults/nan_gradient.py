"""One element of one gradient is not a number."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from stabilizer.errors import ConfigurationError
from trainer.faults.step_fault import StepFault
from trainer.faults.targets import find_parameters


class NanGradient(StepFault):
    """The step after `step` completed ones gets a NaN into the gradient of a module.

    It is there before anyone looks at gradients or clips them: clipping by the global norm makes
    all of them NaN. A loss scaler (precision fp16) leaves such a step out.
    """

    name = "nan_gradient"

    def __init__(self, *, step: int, module: str) -> None:
        """Say when and where.

        Args:
            step: Completed optimizer steps after which it happens.
            module: Dotted name, or its end if only one module has that.

        Raises:
            ValueError: The step is below 1.
        """
        super().__init__(step)
        self._module = module
        self._is_pending = False

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Wait for the gradients of this step.

        Raises:
            ConfigurationError: There is no such module, or it learns nothing.
        """
        parameters = find_parameters(module, self._module, f"faults.{self.name}.module")
        if not any(parameter.requires_grad for parameter in parameters):
            raise ConfigurationError(
                f"faults.{self.name}.module: {self._module!r} cannot be used; allowed: a module "
                "that is trained"
            )
        self._is_pending = True
        return f"a NaN in the gradient of {self._module or 'the model'}"

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        if not self._is_pending:
            return
        for parameter in find_parameters(pl_module, self._module, f"faults.{self.name}.module"):
            gradient = parameter.grad
            if gradient is not None:
                local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
                if local.numel():
                    local.view(-1)[0] = float("nan")
                    self._is_pending = False
                    return

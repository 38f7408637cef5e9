"""Base classes of step faults, which happen once at a step, and the search for modules by name."""

from __future__ import annotations

import logging
from abc import abstractmethod
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Self, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from typing_extensions import override

from stabilizer.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch import nn
else:
    Callback = object  # see FaultCallback

SETTINGS: Final = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
"""Of every fault: its fields are its section of the configuration.

A field that subclasses inherit has its description in `Field`: pydantic reads docstrings of the
class itself only.
"""

Factor: TypeAlias = Annotated[float, Field(gt=0)]

_SHOWN: Final = 6
_log = logging.getLogger(__name__)


class FaultCallback(Callback):
    """A callback of Lightning that loads Lightning with its first instance, not with its class.

    A class of faults is the section of the configuration as well, which is described and checked
    without torch. An instance belongs to a subclass of its class and of Lightning's `Callback`.
    """

    def __new__(cls, *_args: object, **_fields: object) -> Self:
        """Create an instance of the class that is a callback."""
        kind: Any = cls
        created: Self = object.__new__(_callback_class(kind))
        return created

    def __reduce__(self) -> tuple[Any, ...]:
        """Refer to the class by its name: the class that is a callback has none."""
        return _restore, (type(self).__bases__[0], vars(self))


@cache
def _callback_class(kind: type[Any]) -> type[Any]:
    from lightning.pytorch import Callback  # noqa: PLC0415  loads torch

    if issubclass(kind, Callback):
        return kind
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (kind, Callback), names)


def _restore(kind: type[FaultCallback], state: dict[str, Any]) -> FaultCallback:
    fault = kind.__new__(kind)
    vars(fault).update(state)
    return fault


@dataclass(kw_only=True, config=SETTINGS)
class StepFault(FaultCallback):
    """A fault between two optimizer steps, after `step` completed ones.

    It happens once, not again when a rollback passes the step a second time; for that reason
    nothing of it is in the callback's saved state. It breaks state of the job, so a rollback to
    a snapshot or checkpoint from before undoes it. It does not happen in a job that resumes after
    the step.

    A plain callback: `Trainer(callbacks=[SomeFault(step=100)])` works in any Lightning job. Put it
    before the callbacks that watch the job.
    """

    name: ClassVar[str] = "fault"
    """Its section in the configuration; begins every message."""

    step: int = Field(ge=1, description="Completed optimizer steps after which it happens.")

    def __post_init__(self) -> None:
        """Start as not yet fired."""
        self.fired = False

    @abstractmethod
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Apply the fault, without gradients; return what was done, for the log.

        Raises:
            ConfigurationError: The job has nothing that the fault applies to.
        """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset at the start of each `fit`."""
        self.fired = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Skip the fault in a job that resumes after its step."""
        self.fired = trainer.global_step > self.step

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Apply the fault at the first microbatch after the step."""
        if not self.fired and trainer.global_step >= self.step:
            import torch  # noqa: PLC0415  not for the configuration alone

            self.fired = True
            with torch.no_grad():
                done = self.strike(trainer, pl_module)
            _log.warning("fault %s after step %d: %s", self.name, trainer.global_step, done)


@dataclass(kw_only=True, config=SETTINGS)
class PassingFault(StepFault):
    """A fault that lasts for some steps, and ends early when the job is rewound.

    `strike` begins it and `cease` ends it.
    """

    steps: int | None = Field(
        default=None,
        ge=1,
        description="Number of steps that it lasts; null: until the job is rewound or ends.",
    )

    @override
    def __post_init__(self) -> None:
        """Start as inactive."""
        super().__post_init__()
        self._newest_step = 0
        self.is_active = False

    @abstractmethod
    def cease(self) -> None:
        """End it; called once after each `strike`."""

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin or end the fault."""
        is_over = self.steps is not None and trainer.global_step >= self.step + self.steps
        if self.is_active and (is_over or trainer.global_step < self._newest_step):
            self._end(trainer.global_step)
        self._newest_step = trainer.global_step
        was_fired = self.fired
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.is_active = self.is_active or self.fired != was_fired

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End it with the job."""
        if self.is_active:
            self._end(trainer.global_step)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """End it with the job."""
        if self.is_active:
            self._end(trainer.global_step)

    def _end(self, step: int) -> None:
        self.is_active = False
        self.cease()
        _log.warning("fault %s ends at step %d", self.name, step)


def find_module(root: nn.Module, name: str, field: str) -> nn.Module:
    """Return the module with this dotted name, or the only one whose name ends with it.

    Args:
        root: The job's module.
        name: `model.lm_head` as well as `lm_head`.
        field: Of the configuration, for the message.

    Raises:
        ConfigurationError: No module or several modules match; the message lists candidates.
    """
    found = [path for path, _ in root.named_modules() if path == name or path.endswith(f".{name}")]
    if name in found:
        return root.get_submodule(name)
    if len(found) == 1:
        return root.get_submodule(found[0])
    known = found or [path for path, child in root.named_modules() if path and _has_weights(child)]
    shown = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
    raise ConfigurationError(
        f"{field}: {name!r} cannot be used; allowed: the name of one module, such as {shown}"
    )


def find_parameters(root: nn.Module, name: str, field: str) -> list[nn.Parameter]:
    """Return the parameters of the module with this name; all parameters for the empty name.

    Raises:
        ConfigurationError: There is no such module, or it has no parameters.
    """
    module = root if not name else find_module(root, name, field)
    parameters = list(module.parameters())
    if not parameters:
        raise ConfigurationError(
            f"{field}: {name!r} cannot be used; allowed: a module that has weights"
        )
    return parameters


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None

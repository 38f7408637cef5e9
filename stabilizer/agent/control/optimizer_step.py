"""A multiplier on the learning rate, on top of whatever scheduler runs.

The multiplier is put onto `group["lr"]` when an optimizer step begins and taken off when it ends,
by the optimizer's own step hooks. Schedulers (chained ones, ReduceLROnPlateau, cyclic ones, a
warm-up written into `optimizer_step`) run between steps and see their own value, so that none of
them takes our cut for its own doing, and checkpoints hold the schedule's rate. The price: who reads
`group["lr"]` between steps (LearningRateMonitor) reads the scheduler's rate; the effective one is
in `effective`, which the agent reports as `lr`. Without a cut nothing is touched.

A cut holds for its steps and then ramps back linearly. Cuts multiply. Their age counts steps
taken, not step numbers, so that a rollback neither lengthens nor shortens them.


The guard on the device: a step whose gradients hold NaN or Inf can be left out.

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

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from stabilizer.agent.control.host_copy import is_finite
from stabilizer.errors import ControlError
from stabilizer.protocol.commands import ReduceLrParameters


@dataclass(frozen=True)
class Cut:
    """One cut: its factor, how long it holds and ramps back, and how many steps it has had."""

    factor: float
    hold_steps: int | None
    ramp_steps: int
    age: int = 0

    @property
    def scale(self) -> float:
        """Its multiplier for the next step."""
        if self.hold_steps is None or self.age < self.hold_steps:
            return self.factor
        if self.is_over:
            return 1.0
        # Strictly between factor and 1 during the ramp, 1 in the step after it.
        way = (self.age - self.hold_steps + 1) / (self.ramp_steps + 1)
        return self.factor + (1.0 - self.factor) * way

    @property
    def is_over(self) -> bool:
        """Whether it has no effect any more."""
        return self.hold_steps is not None and self.age >= self.hold_steps + self.ramp_steps


class LrOverride:
    """Our multiplier on every parameter group of the optimizers it is attached to."""

    def __init__(self) -> None:
        self.effective: dict[str, float | torch.Tensor] = {}
        """Rate by group that the last optimizer step used; a tensor if the optimizer holds one."""
        self.steps_seen = 0
        """Optimizer steps that ran with our hooks in place."""
        self.broken: str | None = None
        """Why a rate was not the one we had set when the last step ended; None if it was."""
        self._cuts: tuple[Cut, ...] = ()
        self._optimizers: tuple[Optimizer, ...] = ()
        self._names: dict[tuple[int, int], str] = {}
        self._handles: list[RemovableHandle] = []
        self._stashes: dict[int, list[tuple[Any, Any]]] = {}

    @property
    def scale(self) -> float:
        """The multiplier of the next step."""
        return math.prod(cut.scale for cut in self._cuts)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """Cuts in effect, oldest first."""
        return self._cuts

    def cut(self, parameters: ReduceLrParameters) -> None:
        """Multiply the rate by a factor from the next step on."""
        cut = Cut(parameters.factor, parameters.hold_steps, parameters.ramp_steps)
        self._cuts = (*self._cuts, cut)

    def advance(self) -> bool:
        """Count one training step. Returns whether the multiplier is another one now."""
        before = self.scale
        aged = (replace(cut, age=cut.age + 1) for cut in self._cuts)
        self._cuts = tuple(cut for cut in aged if not cut.is_over)
        return self.scale != before

    def attach(self, optimizers: Sequence[Optimizer]) -> None:
        """Put the step hooks on these optimizers, and take them off those before."""
        self.detach()
        self._optimizers = tuple(optimizers)
        self._names = name_groups(self._optimizers)
        for optimizer in self._optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def detach(self) -> None:
        """Take the hooks off."""
        for optimizer in self._optimizers:
            self._unscale(optimizer)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._optimizers = ()

    def expected(self) -> dict[str, float]:
        """Rate by group that the next step will use if no scheduler runs before it."""
        rates = {}
        for index, optimizer in enumerate(self._optimizers):
            for position, group in enumerate(optimizer.param_groups):
                stash = self._stashes.get(id(optimizer))
                base = stash[position][0] if stash is not None else group["lr"]
                rates[self._name(index, position)] = float(base) * self.scale
        return rates

    def reassert(self, optimizer: Optimizer) -> None:
        """Put the multiplier on again if the step itself has set the rate since the step began.

        To be called as late in a step as possible: training code may set `group["lr"]` in the
        closure, after our hook has run.
        """
        stash = self._stashes.get(id(optimizer))
        if stash is None:
            return
        for position, group in enumerate(optimizer.param_groups):
            if not _is_equal(group["lr"], stash[position][1]):
                stash[position] = _scale_group(group, self.scale)
        self._note_effective(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The cuts, for a checkpoint."""
        return {"cuts": [asdict(cut) for cut in self._cuts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the cuts of a checkpoint.

        Raises:
            ControlError: The state is not one of ours.
        """
        try:
            self._cuts = tuple(Cut(**cut) for cut in state["cuts"])
        except (KeyError, TypeError) as error:
            raise ControlError(f"learning-rate state {state!r} has no list of cuts") from error

    def _before_step(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        self._unscale(optimizer)  # a step before this one may have been interrupted
        self.steps_seen += 1
        self.broken = None
        if self._cuts:
            scale = self.scale
            self._stashes[id(optimizer)] = [
                _scale_group(group, scale) for group in optimizer.param_groups
            ]
        self._note_effective(optimizer)

    def _after_step(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        stash = self._stashes.get(id(optimizer), ())
        for group, (_, scaled) in zip(optimizer.param_groups, stash, strict=False):
            if not _is_equal(group["lr"], scaled):
                self.broken = f"the step set the rate to {float(group['lr'])}, not {float(scaled)}"
        self._unscale(optimizer)

    def _unscale(self, optimizer: Optimizer) -> None:
        stash = self._stashes.pop(id(optimizer), None)
        if stash is None:
            return
        for group, (base, scaled) in zip(optimizer.param_groups, stash, strict=False):
            if not _is_equal(group["lr"], scaled):
                continue  # set by the training code during the step: its word stands
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].copy_(base)
            else:
                group["lr"] = base

    def _name(self, index: int, position: int) -> str:
        # Groups may be added while training runs, by a schedule that unfreezes layers.
        return self._names.setdefault((index, position), f"{index}/{position}")

    def _note_effective(self, optimizer: Optimizer) -> None:
        index = next(i for i, known in enumerate(self._optimizers) if known is optimizer)
        for position, group in enumerate(optimizer.param_groups):
            rate = group["lr"]
            name = self._name(index, position)
            self.effective[name] = rate.clone() if isinstance(rate, torch.Tensor) else float(rate)


def name_groups(optimizers: Sequence[Optimizer]) -> dict[tuple[int, int], str]:
    """Name every parameter group: its own `name` if it has one, else its position.

    Returns:
        (index of the optimizer, index of the group) to a name, all names distinct.
    """
    names: dict[tuple[int, int], str] = {}
    for index, optimizer in enumerate(optimizers):
        for position, group in enumerate(optimizer.param_groups):
            name = str(group.get("name", position))
            if len(optimizers) > 1:
                name = f"{index}/{name}"
            if name in names.values():
                name = f"{name}#{index}.{position}"
            names[index, position] = name
    return names


def _scale_group(group: dict[str, Any], scale: float) -> tuple[Any, Any]:
    """Multiply the rate of a group. Returns the rate before and after."""
    rate = group["lr"]
    if isinstance(rate, torch.Tensor):  # fused and capturable optimizers keep a tensor: in place
        base = rate.clone()
        rate.mul_(scale)
        return base, rate.clone()
    group["lr"] = rate * scale
    return rate, group["lr"]


def _is_equal(first: float | torch.Tensor, second: float | torch.Tensor) -> bool:
    if isinstance(first, torch.Tensor) or isinstance(second, torch.Tensor):
        # Compares on the host; optimizers hold the rate on the device only when capturable.
        return bool(torch.equal(torch.as_tensor(first).cpu(), torch.as_tensor(second).cpu()))
    return bool(first == second)


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

"""What the agent changes in an optimizer step: the learning rate, and non-finite gradients.

`LrOverride` multiplies the learning rate on top of any scheduler. It scales `group["lr"]` when an
optimizer step begins and restores it when the step ends, in the optimizer's own step hooks.
Schedulers (chained, ReduceLROnPlateau, cyclic, a warm-up in `optimizer_step`) run between steps and
see their own value: none mistakes our cut for its own, and checkpoints keep the scheduled rate. The
cost: code that reads `group["lr"]` between steps (LearningRateMonitor) sees the scheduler's rate;
the effective one is in `effective`, which the agent reports as `lr`. Without a cut nothing changes.

A cut holds for its steps and then ramps back linearly. Cuts multiply. Their age counts steps taken,
not step numbers, so a rollback neither lengthens nor shortens them.

`NonfiniteGuard` acts without collector or rules. The default, `OBSERVE`, leaves the step to the job
and lets the probes count non-finite values: many precision settings skip such steps themselves (a
gradient scaler does), and changing a job's updates needs its consent. With `SKIP_STEP`, gradients
that hold NaN or Inf are set to None before the optimizer's step, so that weights, moments and
weight decay stay as they are. Multiplying by a zero flag, or `torch.where` on gradients, would let
NaN into the moments (NaN times zero) or decay them. The decision is made on the host and costs one
wait for the device per step. After a distributed backward all ranks hold the same gradients and
decide alike; where each holds a shard, they agree first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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
    """A learning-rate cut: its factor, its hold and ramp in steps, and its age in steps."""

    factor: float
    hold_steps: int | None
    ramp_steps: int
    age: int = 0

    @property
    def scale(self) -> float:
        """Multiplier for the next step."""
        if self.hold_steps is None or self.age < self.hold_steps:
            return self.factor
        if self.is_over:
            return 1.0
        # Strictly between factor and 1 during the ramp, 1 in the step after it.
        progress = (self.age - self.hold_steps + 1) / (self.ramp_steps + 1)
        return self.factor + (1.0 - self.factor) * progress

    @property
    def is_over(self) -> bool:
        """Whether it no longer has an effect."""
        return self.hold_steps is not None and self.age >= self.hold_steps + self.ramp_steps


class LrOverride:
    """A multiplier on every parameter group of the attached optimizers."""

    def __init__(self) -> None:
        self.effective: dict[str, float | torch.Tensor] = {}
        """Rate per group used by the last optimizer step; a tensor if the optimizer holds one."""
        self.steps_seen = 0
        """Optimizer steps that ran with the hooks in place."""
        self.broken: str | None = None
        """Why the last step did not end with the rate we set; None if it did."""
        self._cuts: tuple[Cut, ...] = ()
        self._optimizers: tuple[Optimizer, ...] = ()
        self._names: dict[tuple[int, int], str] = {}
        self._handles: list[RemovableHandle] = []
        self._stashes: dict[int, list[tuple[Any, Any]]] = {}

    @property
    def scale(self) -> float:
        """Multiplier for the next step."""
        return math.prod(cut.scale for cut in self._cuts)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """Cuts in effect, oldest first."""
        return self._cuts

    def cut(self, parameters: ReduceLrParameters) -> None:
        """Multiply the rate by a factor from the next step on."""
        cut = Cut(parameters.factor, parameters.hold_steps, parameters.ramp_steps)
        self._cuts = (*self._cuts, cut)

    def advance(self) -> None:
        """Count one training step; drop the cuts that are over."""
        aged = (replace(cut, age=cut.age + 1) for cut in self._cuts)
        self._cuts = tuple(cut for cut in aged if not cut.is_over)

    def attach(self, optimizers: Sequence[Optimizer]) -> None:
        """Put step hooks on these optimizers; remove them from earlier ones."""
        self.detach()
        self._optimizers = tuple(optimizers)
        self._names = name_groups(self._optimizers)
        for optimizer in self._optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def detach(self) -> None:
        """Remove the hooks."""
        for optimizer in self._optimizers:
            self._unscale(optimizer)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._optimizers = ()

    def expected(self) -> dict[str, float]:
        """Return the rate per group of the next step if no scheduler runs before it."""
        rates = {}
        for index, optimizer in enumerate(self._optimizers):
            for position, group in enumerate(optimizer.param_groups):
                stash = self._stashes.get(id(optimizer))
                base = stash[position][0] if stash is not None else group["lr"]
                rates[self._name(index, position)] = float(base) * self.scale
        return rates

    def reassert(self, optimizer: Optimizer) -> None:
        """Apply the multiplier again if training code has set the rate since the step began.

        Call it as late in a step as possible: training code may set `group["lr"]` in the closure,
        after our hook has run.
        """
        stash = self._stashes.get(id(optimizer))
        if stash is None:
            return
        for position, group in enumerate(optimizer.param_groups):
            if not _is_equal(group["lr"], stash[position][1]):
                stash[position] = _scale_group(group, self.scale)
        self._note_effective(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the cuts, for a checkpoint."""
        return {"cuts": [asdict(cut) for cut in self._cuts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the cuts of a checkpoint.

        Raises:
            ControlError: The state cannot be read.
        """
        try:
            self._cuts = tuple(Cut(**cut) for cut in state["cuts"])
        except (KeyError, TypeError) as error:
            raise ControlError(f"learning-rate state {state!r} has no list of cuts") from error

    def _before_step(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        self._unscale(optimizer)  # an earlier step may have been interrupted
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
                continue  # set by training code during the step: leave it
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].copy_(base)
            else:
                group["lr"] = base

    def _name(self, index: int, position: int) -> str:
        # A schedule that unfreezes layers may add groups while training runs.
        return self._names.setdefault((index, position), f"{index}/{position}")

    def _note_effective(self, optimizer: Optimizer) -> None:
        index = next(i for i, known in enumerate(self._optimizers) if known is optimizer)
        for position, group in enumerate(optimizer.param_groups):
            rate = group["lr"]
            name = self._name(index, position)
            self.effective[name] = rate.clone() if isinstance(rate, torch.Tensor) else float(rate)


def name_groups(optimizers: Sequence[Optimizer]) -> dict[tuple[int, int], str]:
    """Name every parameter group: by its `name` if it has one, else by its position.

    Returns:
        (index of the optimizer, index of the group) to a distinct name.
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
    if isinstance(rate, torch.Tensor):  # as in fused and capturable optimizers: scale in place
        base = rate.clone()
        rate.mul_(scale)
        return base, rate.clone()
    group["lr"] = rate * scale
    return rate, group["lr"]


def _is_equal(first: float | torch.Tensor, second: float | torch.Tensor) -> bool:
    if isinstance(first, torch.Tensor) or isinstance(second, torch.Tensor):
        # Compare on the host; only capturable optimizers keep the rate on the device.
        return bool(torch.equal(torch.as_tensor(first).cpu(), torch.as_tensor(second).cpu()))
    return bool(first == second)


class GuardPolicy(StrEnum):
    """What the guard does about non-finite gradients."""

    OBSERVE = "observe"
    SKIP_STEP = "skip_step"


class NonfiniteGuard:
    """Skips steps with non-finite gradients, if the policy says so."""

    def __init__(self, policy: GuardPolicy = GuardPolicy.OBSERVE) -> None:
        self.policy = policy

    def act(
        self, parameters: Iterable[nn.Parameter], any_rank: Callable[[bool], bool] | None = None
    ) -> bool:
        """Check the gradients after the last backward, before the optimizer's step.

        Args:
            parameters: All parameters of the model.
            any_rank: Returns on every rank whether the flag is set on one; for gradients in shards.

        Returns:
            Whether the step is skipped: no parameter has a gradient any more.
        """
        if self.policy is GuardPolicy.OBSERVE:
            return False
        held = [parameter for parameter in parameters if parameter.grad is not None]
        is_broken = not is_finite(_values(parameter) for parameter in held)
        if not (any_rank(is_broken) if any_rank is not None else is_broken):
            return False
        for parameter in held:
            parameter.grad = None
        return True


def _values(parameter: nn.Parameter) -> Tensor:
    """The stored values of a gradient, which may be sparse."""
    gradient = parameter.grad if parameter.grad is not None else parameter.new_zeros(())
    return gradient.coalesce().values() if gradient.is_sparse else gradient

"""Frozen parts that begin to learn at a step.

Which parts learn is a function of the completed steps alone, so that a rewind to before the change
freezes them again, and a resumed job stands where the broken one stood. The optimizer knows their
weights from the start: it leaves out what has no gradient and makes moments when there is one, so
that its groups never change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from typing_extensions import override

from trainer.config import Part, UnfreezeConfig
from trainer.module.parts import learners


class UnfreezeSchedule(Callback):
    """Unfreezes parts on time, and tells the job that watches that a phase has begun.

    With several ranks, or shards, the weights count as learning from the start, since DDP and FSDP
    fix when they wrap a model which gradients they will reduce; until their step these are thrown
    away. That costs the memory and time of the gradients, which the later phase needs anyway.
    """

    def __init__(self, changes: Sequence[UnfreezeConfig]) -> None:
        """Unfreeze by these changes."""
        self._changes = tuple(changes)
        self._open: frozenset[Part] = frozenset()
        self._applied: frozenset[Part] | None = None
        self._by_part: dict[Part, list[nn.Parameter]] = {}
        self._is_held = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let what is held back count as learning, before a strategy wraps the model."""
        is_sharded = isinstance(trainer.strategy, ModelParallelStrategy)
        self._is_held = trainer.world_size > 1 or is_sharded
        self._open, self._applied = frozenset(), None
        self._find(pl_module)
        if self._is_held:
            for parameter in self._parameters(self._by_part):
                parameter.requires_grad_(True)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the weights again: where the model was sharded they are others now."""
        self._find(pl_module)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Bring the model to the phase of the step that begins."""
        wanted = frozenset(
            part
            for change in self._changes
            if change.step <= trainer.global_step
            for part in change.parts
        )
        if wanted != self._applied:
            self._apply(wanted)
        begun = sorted(wanted - self._open)
        self._open = wanted
        job = getattr(pl_module, "stabilizer_job", None)
        if begun and job is not None:
            job.phase(f"unfrozen: {', '.join(begun)}")

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Throw away the gradients of what is held back."""
        if self._is_held:
            for parameter in self._parameters(self._by_part.keys() - self._open):
                parameter.grad = None

    @override
    def state_dict(self) -> dict[str, Any]:
        """What is unfrozen, so that going on with it is not told as a change."""
        return {"open": sorted(self._open)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was unfrozen; the model follows when the next step begins."""
        self._open = frozenset(state_dict["open"])
        self._applied = None

    def _find(self, module: LightningModule) -> None:
        parts = [part for change in self._changes for part in change.parts]
        self._by_part = {part: list(learners(module, (part,))) for part in parts}

    def _apply(self, wanted: frozenset[Part]) -> None:
        self._applied = wanted
        if self._is_held:
            return
        for part in self._by_part:
            for parameter in self._parameters((part,)):
                parameter.requires_grad_(part in wanted)
                if part not in wanted:
                    parameter.grad = None

    def _parameters(self, parts: Iterable[Part]) -> Iterable[nn.Parameter]:
        return (parameter for part in parts for parameter in self._by_part[part])

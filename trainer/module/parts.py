"""Parts of the model by name, and when frozen ones begin to learn."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from typing_extensions import override

from stabilizer.agent.probes.naming import canonical_name
from trainer.config import Part, UnfreezeConfig

_PATTERNS: Final[tuple[tuple[Part, re.Pattern[str]], ...]] = (
    ("new_tokens", re.compile(r"\.additional_embedding\.|\.additional_fc\.")),
    ("embeddings", re.compile(r"(\A|\.)embed_tokens\.")),
    ("head", re.compile(r"(\A|\.)lm_head\.")),
    ("gates", re.compile(r"\.alpha_(cross_attn|dense)\Z")),
    ("cross_attention", re.compile(r"(\A|\.)gated_cross_attn_layers\.")),
    ("resampler", re.compile(r"(\A|\.)perceiver_resampler\.")),
    (
        "vision_norms",
        re.compile(r"(\A|\.)vision_model\.(.*\.)?(pre_layrnorm|post_layernorm|layer_norm[12])\."),
    ),
    ("vision", re.compile(r"(\A|\.)vision_model\.")),
    (
        "added_norms",
        re.compile(r"(\A|\.)layers\.\d+\.\w+\.(q_layer_norm|k_layer_norm|o_norm|fc2_norm)\."),
    ),
    (
        "language_norms",
        re.compile(r"(\A|\.)(layers\.\d+\.(input|post_attention)_layernorm|norm)\."),
    ),
    ("language_layers", re.compile(r"(\A|\.)layers\.\d+\.")),
)
"""In order: the first that fits."""

_IDLE: Final = re.compile(r"(\A|\.)vision_model\.post_layernorm\.")
"""The encoder's last norm is for a pooled vector that IDEFICS does not use: it never has a
gradient, and DDP would wait for one."""


def part_of(name: str) -> Part:
    """Return the part of a weight.

    Args:
        name: Its dotted name in the model, with or without wrappers around the model.

    Raises:
        ValueError: No part has such a weight.
    """
    short = canonical_name(name)
    for part, pattern in _PATTERNS:
        if pattern.search(short):
            return part
    raise ValueError(f"{name} belongs to no part of the model")


def can_learn(name: str) -> bool:
    """Return whether a weight has any effect on the loss."""
    return _IDLE.search(canonical_name(name)) is None


def learners(model: nn.Module, parts: Collection[Part]) -> Iterator[nn.Parameter]:
    """Give the weights of some parts that learn unless they are frozen, in the model's order."""
    for name, parameter in model.named_parameters():
        if part_of(name) in parts and can_learn(name):
            yield parameter


def freeze(model: nn.Module, parts: Collection[Part]) -> None:
    """Let all weights learn that can, but those of these parts."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) not in parts and can_learn(name))


class UnfreezeSchedule(Callback):
    """Unfreeze parts at their step, and report the new phase to the monitored job.

    With several ranks or shards the weights are trainable from the start, since DDP and FSDP decide
    which gradients to reduce when they wrap a model; until their step the gradients are dropped.
    The memory and time of the gradients are needed in the later phase anyway.
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
        """Mark parts that unfreeze later as trainable, before a strategy wraps the model."""
        is_sharded = isinstance(trainer.strategy, ModelParallelStrategy)
        self._is_held = trainer.world_size > 1 or is_sharded
        self._open, self._applied = frozenset(), None
        self._find(pl_module)
        if self._is_held:
            for parameter in self._parameters(self._by_part):
                parameter.requires_grad_(True)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up the weights again: sharding has replaced them."""
        self._find(pl_module)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the phase of the step that begins."""
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
        """Drop the gradients of parts that are not unfrozen yet."""
        if self._is_held:
            for parameter in self._parameters(self._by_part.keys() - self._open):
                parameter.grad = None

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return what is unfrozen, so that a resume does not report it as a change."""
        return {"open": sorted(self._open)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what was unfrozen; it takes effect with the next step."""
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

"""Which part of the model a weight belongs to, told by its name; what is frozen and what learns."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Final

from torch import nn

from stabilizer.agent.probes.naming import canonical_name
from trainer.config import Part

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
    """Tell whether a weight has any effect on the loss."""
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

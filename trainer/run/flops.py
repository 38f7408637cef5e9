"""Floating-point operations of the model, counted on a model without memory."""

from __future__ import annotations

from typing import Final

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import RunConfig
from trainer.module import build_skeleton

_PASSES: Final = 3
"""A forward pass and a backward pass of twice its cost; what is computed again for activation
checkpointing is no work of the model (PaLM, arXiv:2204.02311, appendix B)."""


def training_flops(config: RunConfig) -> int:
    """Return the operations of one sequence in one step, forward and backward.

    The backward pass counts in full, also where parts of the model are frozen: gradients go through
    most of them all the same.
    """
    data, size = config.data, config.model.vision.image_size
    model = build_skeleton(config.model)
    model.set_attn_implementation("eager")  # the fused one looks into the mask, which has no memory
    with torch.device("meta"):
        inputs = {
            "input_ids": torch.zeros(1, data.sequence_length, dtype=torch.long),
            "attention_mask": torch.ones(1, data.sequence_length, dtype=torch.long),
            "pixel_values": torch.zeros(1, data.max_images, 3, size, size),
            "image_attention_mask": torch.ones(
                1, data.sequence_length, data.max_images, dtype=torch.long
            ),
        }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(**inputs, use_cache=False)
    return _PASSES * int(counter.get_total_flops())

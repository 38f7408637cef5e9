"""Floating-point operations of the model, counted on a model without memory."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import ModelConfig, RunConfig
from trainer.module import build_skeleton


def training_flops(config: RunConfig) -> int:
    """Return the operations of one sequence in one step, forward and backward.

    Counted is what a step has to compute: a frozen matrix has no gradient of its own, though
    gradients go through it to what learns before it, and a frozen vision encoder has no backward
    pass at all. Parts that unfreeze later count as frozen. What is computed again for activation
    checkpointing is no work of the model (PaLM, arXiv:2204.02311, appendix B).
    """
    data, size = config.data, config.model.vision.image_size
    model = build_skeleton(_without_looking(config.model)).train()
    with torch.device("meta"):
        inputs = {
            "input_ids": torch.zeros(1, data.sequence_length, dtype=torch.long),
            "attention_mask": torch.ones(1, data.sequence_length, dtype=torch.long),
            "pixel_values": torch.zeros(1, data.max_images, 3, size, size),
            "image_attention_mask": torch.ones(
                1, data.sequence_length, data.max_images, dtype=torch.long
            ),
        }
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        logits = model(**inputs, use_cache=False).logits
        if logits.requires_grad:  # else everything is frozen
            logits.sum().backward()
    return int(counter.get_total_flops())


def _without_looking(model: ModelConfig) -> ModelConfig:
    """Return a model of the same operations that never looks at a value, since none has memory.

    The fused attention looks into the mask, and additional tokens are searched for in the input:
    here they are rows of the vocabulary like others.
    """
    return replace(
        model,
        activation_checkpointing=False,
        attention="eager",
        vocabulary_size=model.total_vocabulary,
        additional_tokens=0,
    )

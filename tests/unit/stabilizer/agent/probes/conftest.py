"""A small IDEFICS, a batch for it, and a way to read frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from stabilizer.agent.probes.record import PendingFrames


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_idefics() -> Callable[..., nn.Module]:
    """Build IDEFICS with two layers per tower, dropout on, gates open, the same for every call."""
    transformers = pytest.importorskip("transformers")

    def make(implementation: str = "sdpa", *, qk_norms: bool = True, **options: Any) -> nn.Module:
        perceiver = {
            "use_resampler": True,
            "resampler_n_latents": 4,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "qk_layer_norms_perceiver": qk_norms,
        }
        vision = {
            "embed_dim": 16,
            "image_size": 8,
            "patch_size": 4,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "attention_dropout": options.get("dropout", 0.1),
        }
        defaults = {
            "vocab_size": 40,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "dropout": 0.1,
            "alpha_initializer": "ones",
            "cross_layer_interval": 2,
            "qk_layer_norms": qk_norms,
            "freeze_text_layers": False,
            "freeze_vision_layers": False,
            "use_resampler": True,
            "use_cache": False,
            "perceiver_config": perceiver,
            "vision_config": vision,
            "attn_implementation": implementation,
        }
        torch.manual_seed(0)
        config = transformers.IdeficsConfig(**(defaults | options))
        model: nn.Module = transformers.IdeficsForVisionText2Text(config)
        return model.train()

    return make


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two texts of 10 tokens, the second padded at its end; each sees its images one by one."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 40, (2, 10), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    seen = torch.arange(10)[None, :, None] >= torch.tensor([2, 5])[None, None, :]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.randn(2, 2, 3, 8, 8, generator=generator),
        "image_attention_mask": seen.long().expand(2, -1, -1),
        "labels": ids.masked_fill(mask == 0, -100),
    }


@pytest.fixture
def read() -> Callable[[PendingFrames], dict[str, float]]:
    """Values of the series that are present, by their text form."""

    def values(frames: PendingFrames) -> dict[str, float]:
        found: dict[str, float] = {}
        for catalog, block in frames.blocks():
            assert block.catalog == catalog.id
            assert block.values.shape == (1, len(catalog))
            for column, key in enumerate(catalog.series):
                if block.present is None or block.present[0, column]:
                    found[str(key)] = float(block.values[0, column])
        return found

    return values

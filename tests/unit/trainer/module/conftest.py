"""Small models, and batches that need no corpus."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter

from trainer.config import ModelConfig
from trainer.module import build_model

SMALL = {
    "vocabulary_size": 50,
    "additional_tokens": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "layers": 4,
    "heads": 2,
    "cross_attention_every": 2,
    "max_positions": 32,
    "vision": {
        "image_size": 8,
        "patch_size": 4,
        "hidden_size": 16,
        "intermediate_size": 24,
        "layers": 2,
        "heads": 2,
    },
    "resampler": {"latents": 3, "layers": 2, "heads": 2, "head_size": 8},
}


def _set(values, name, value):
    *path, last = name.split(".")
    for part in path:
        values = values.setdefault(part, {})
    values[last] = value


def small_config(**fields):
    """Make a small model's configuration, changed by dotted fields."""
    values = {**SMALL, "vision": {**SMALL["vision"]}, "resampler": {**SMALL["resampler"]}}
    for name, value in fields.items():
        _set(values, name.replace("__", "."), value)
    return TypeAdapter(ModelConfig).validate_python(values)


@pytest.fixture(scope="session")
def model_config():
    """Return `small_config`."""
    return small_config


@pytest.fixture
def small_model(model_config):
    """Return a function that builds a small model from seed 0."""

    def make(**fields):
        torch.manual_seed(0)
        return build_model(model_config(**fields))

    return make


@pytest.fixture
def inputs():
    """Two documents of 12 tokens with two pictures, the second document padded behind 9."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 52, (2, 12), generator=generator)
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 9:] = 0
    ids[1, 9:] = 0
    seen = torch.zeros(2, 12, 2, dtype=torch.int64)
    seen[:, 2:6, 0] = 1
    seen[:, 6:, 1] = 1
    seen *= mask[..., None]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
        "pixel_values": torch.randn(2, 2, 3, 8, 8, generator=generator),
        "image_attention_mask": seen,
        "source": ["web", "pairs"],
    }


@pytest.fixture
def logits(inputs):
    """Return a function that gives a model's logits of the inputs, as it stands."""

    def run(model, **changes):
        given = {name: value for name, value in inputs.items() if name not in ("labels", "source")}
        return model(**(given | changes), use_cache=False).logits

    return run

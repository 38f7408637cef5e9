from __future__ import annotations

import pytest

from trainer.config import load_config
from trainer.run.throughput import training_flops

LANGUAGE = ["language_layers", "language_norms", "embeddings", "head"]
VISION = ["vision", "vision_norms"]
NEW = ["resampler", "cross_attention", "gates", "new_tokens", "added_norms"]


def test_operations_are_close_to_six_per_weight_and_token(make_config):
    config = make_config(model__vocabulary_size=4096)  # the head is most of it
    head = config.model.vocabulary_size * config.model.hidden_size
    flops = training_flops(config)
    assert flops > 6 * head * config.data.sequence_length
    assert flops < 2 * 6 * head * config.data.sequence_length


def test_operations_grow_with_layers_and_pictures(make_config):
    small = training_flops(make_config())
    assert training_flops(make_config(model__layers=4)) > small
    assert training_flops(make_config(data__max_images=6)) > small


def test_a_frozen_matrix_has_no_gradient_of_its_own(make_config):
    """A third of the work on it goes; what learns before it still needs gradients through it."""
    config = make_config(model__vocabulary_size=4096)
    head = config.model.vocabulary_size * config.model.hidden_size
    frozen = training_flops(make_config(model__vocabulary_size=4096, model__freeze=["head"]))
    assert training_flops(config) - frozen == 2 * head * config.data.sequence_length


def test_a_frozen_encoder_has_no_backward_pass(make_config):
    def flops(*frozen):
        return training_flops(make_config(model__freeze=list(frozen)))

    forward = flops(*LANGUAGE, *VISION, *NEW)
    encoder = flops() - flops(*VISION)
    longer = training_flops(make_config(model__freeze=LANGUAGE + VISION + NEW, data__max_images=6))
    pictures = longer - forward  # those of three more: encoder, resampler, keys and values
    assert pictures < encoder < 2 * pictures
    assert 2 * forward < flops() < 3 * forward


@pytest.mark.parametrize(
    "fields",
    [
        {"model__activation_checkpointing": True},
        {"model__attention": "eager"},
        {"model__vocabulary_size": 638, "model__additional_tokens": 2},
    ],
    ids=["checkpointing", "attention", "additional-tokens"],
)
def test_how_it_is_computed_is_no_more_work(make_config, fields):
    assert training_flops(make_config(**fields)) == training_flops(make_config())


def test_the_operations_of_the_published_model_are_those_of_its_parts():
    config = load_config("idefics-9b")
    tokens, patches = config.data.sequence_length, config.data.max_images * (16 * 16 + 1)
    language = 4 * tokens * (6_738_415_616 - 32_000 * 4096)  # forward, and gradients through it
    vision = 2 * patches * 630_766_080  # forward alone
    blocks = 6 * tokens * 8 * (3 * 4096 * 11008 + 2 * 4096 * 4096)  # MLP, queries and outputs
    # The rest: scores, keys and values of the pictures, the resampler.
    assert language + vision + blocks < training_flops(config) < 1.3 * (language + vision + blocks)

from dataclasses import replace

import pytest
from pydantic import ValidationError

from stabilizer.errors import ConfigurationError
from trainer.module import build_model
from trainer.module.sizes import at_equal_size, count_weights


def test_the_count_is_that_of_the_model(model_config, small_model):
    sizes = count_weights(model_config(freeze=["vision"]))
    model = small_model(freeze=["vision"])
    assert sizes.total == sum(p.numel() for p in model.parameters())
    assert sizes.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes.total - sizes.trainable == sizes.by_part["vision"] + 2 * 16  # the idle norm
    assert sizes.by_part["gates"] == 2 * 2
    assert sizes.by_part["new_tokens"] == 2 * 2 * 32
    assert sizes.by_part["added_norms"] == 0


@pytest.mark.parametrize("layers", [2, 16])
def test_another_depth_has_as_many_weights(model_config, layers):
    config = model_config(layers=4, hidden_size=256, heads=16, intermediate_size=512)
    other = at_equal_size(replace(config, layers_at_equal_size=layers))
    assert (other.layers, other.layers_at_equal_size) == (layers, None)
    assert (other.hidden_size < config.hidden_size) == (layers > 4)
    assert other.hidden_size // other.heads == 16
    assert count_weights(other).total == pytest.approx(count_weights(config).total, rel=0.01)
    assert other.vision == config.vision


def test_the_same_depth_is_the_same_model(model_config):
    config = model_config()
    assert at_equal_size(config) is config
    assert at_equal_size(replace(config, layers_at_equal_size=config.layers)) == config


def test_a_model_whose_widths_are_not_chosen_is_not_built(model_config):
    with pytest.raises(ValueError, match="choose the widths first"):
        build_model(model_config(layers_at_equal_size=8))


def test_a_depth_that_no_width_makes_up_for_is_refused(model_config):
    config = model_config(
        layers=2, vocabulary_size=2, intermediate_size=2, additional_tokens=0,
        layers_at_equal_size=32,
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"model\.layers_at_equal_size: 32 cannot be used"):
        at_equal_size(config)


@pytest.mark.parametrize("layers", [0, 5, -2])
def test_a_depth_between_two_cross_attentions_is_refused(model_config, layers):
    with pytest.raises(ValidationError, match="layers_at_equal_size"):
        model_config(layers_at_equal_size=layers)

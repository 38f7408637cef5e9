import pytest

from stabilizer.errors import ConfigurationError
from trainer.module.sizes import count_weights, deep_and_wide, reshape


def test_the_count_is_that_of_the_model(model_config, small_model):
    sizes = count_weights(model_config(freeze=["vision"]))
    model = small_model(freeze=["vision"])
    assert sizes.total == sum(p.numel() for p in model.parameters())
    assert sizes.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes.total - sizes.trainable == sizes.by_part["vision"] + 2 * 16  # the idle norm
    assert sizes.by_part["gates"] == 2 * 2
    assert sizes.by_part["new_tokens"] == 2 * 2 * 32
    assert sizes.by_part["added_norms"] == 0


@pytest.mark.parametrize("layers", [2, 8, 12])
def test_another_depth_has_as_many_weights(model_config, layers):
    config = model_config(layers=4, hidden_size=256, heads=16, intermediate_size=512)
    other = reshape(config, layers=layers)
    assert other.layers == layers
    assert (other.hidden_size < config.hidden_size) == (layers > 4)
    assert other.hidden_size // other.heads == 16
    assert count_weights(other).total == pytest.approx(count_weights(config).total, rel=0.01)
    assert other.vision == config.vision


def test_deep_and_wide_are_equal_in_size_and_apart_in_depth(model_config):
    config = model_config(layers=8, hidden_size=256, heads=16, intermediate_size=512)
    deep, wide = deep_and_wide(config)
    assert (deep.layers, wide.layers) == (16, 4)
    sizes = [count_weights(each).total for each in (deep, config, wide)]
    assert max(sizes) / min(sizes) < 1.01


def test_the_same_depth_is_the_same_model(model_config):
    config = model_config()
    assert reshape(config, layers=config.layers) == config


def test_a_depth_that_no_width_makes_up_for_is_refused(model_config):
    config = model_config(layers=2, vocabulary_size=2, intermediate_size=2, additional_tokens=0)
    with pytest.raises(ConfigurationError, match=r"model\.layers: 32 cannot be used"):
        reshape(config, layers=32)


@pytest.mark.parametrize(("layers", "factor"), [(4, 1), (4, 4), (6, 2)])
def test_a_depth_that_cannot_be_divided_is_refused(model_config, layers, factor):
    with pytest.raises(ConfigurationError, match="factors from 2 on"):
        deep_and_wide(model_config(layers=layers), factor)


def test_a_depth_between_two_cross_attentions_is_refused(model_config):
    with pytest.raises(ConfigurationError, match=r"model\.cross_attention_every"):
        reshape(model_config(), layers=5)

import pytest
import torch

from trainer.config import load_config
from trainer.module import build_model


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return build_model(load_config("idefics-tiny").model).eval()


@pytest.fixture
def small(make_config):
    def make(**fields):
        torch.manual_seed(0)
        return build_model(make_config(**fields).model).eval()

    return make


def logits(model, batch, pixel_values=None):
    pixels = batch["pixel_values"] if pixel_values is None else pixel_values
    with torch.no_grad():
        return model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values=pixels,
            image_attention_mask=batch["image_attention_mask"],
            use_cache=False,
        ).logits


def test_the_tiny_preset_has_about_two_million_parameters(tiny):
    count = sum(parameter.numel() for parameter in tiny.parameters())
    assert 1_800_000 < count < 2_200_000
    frozen = {name for name, parameter in tiny.named_parameters() if not parameter.requires_grad}
    assert {name.rpartition(".")[0] for name in frozen} == {"model.vision_model.post_layernorm"}


def test_the_tiny_preset_has_every_part_of_the_architecture(tiny):
    assert len(tiny.model.vision_model.encoder.layers) == 2
    assert len(tiny.model.perceiver_resampler.blocks) == 2
    assert len(tiny.model.layers) == 6
    assert len(tiny.model.gated_cross_attn_layers) == 3
    for block in tiny.model.gated_cross_attn_layers:
        assert not block.alpha_cross_attn.any()
        assert not block.alpha_dense.any()
        assert block.alpha_cross_attn.shape == (1,)
        assert block.cross_attn.qk_layer_norms


def test_with_closed_gates_the_pictures_do_not_matter_to_a_bit(tiny, make_batch):
    batch = make_batch()
    noise = torch.randn_like(batch["pixel_values"])
    assert torch.equal(logits(tiny, batch), logits(tiny, batch, noise))


def test_with_closed_gates_it_is_the_bare_language_model_to_a_bit(tiny, make_batch, monkeypatch):
    batch = make_batch()
    expected = logits(tiny, batch)
    for block in tiny.model.gated_cross_attn_layers:
        monkeypatch.setattr(block, "forward", lambda hidden_states, *_, **__: hidden_states)
    assert torch.equal(logits(tiny, batch), expected)


def test_with_open_gates_the_pictures_matter_only_after_them(small, make_batch):
    model = small(**{"model.gate_initializer": "ones"})
    batch = make_batch()
    noise = torch.randn_like(batch["pixel_values"])
    differ = (logits(model, batch) != logits(model, batch, noise)).any(dim=-1)
    sees = batch["image_attention_mask"].any(dim=-1).cumsum(dim=1) > 0
    assert differ.any()
    assert not (differ & ~sees).any()


@pytest.mark.parametrize(
    ("part", "frozen"),
    [
        ("language_layers", "model.layers.0.mlp."),
        ("vision", "model.vision_model.encoder.layers.0.mlp."),
        ("head", "lm_head."),
    ],
)
def test_a_part_can_be_frozen_and_new_blocks_still_learn(small, part, frozen):
    model = small(**{"model.freeze": [part]})
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert not any(value for name, value in learns.items() if name.startswith(frozen))
    new = ("model.gated_cross_attn_layers.", "model.perceiver_resampler.")
    assert all(value for name, value in learns.items() if name.startswith(new))


@pytest.mark.parametrize("is_on", [True, False])
def test_query_and_key_norms_are_options(small, is_on):
    model = small(**{"model.qk_norm": is_on, "model.resampler.qk_norm": is_on})
    names = [name for name, _ in model.named_parameters()]
    in_cross_attention = any("cross_attn.q_layer_norm" in name for name in names)
    in_resampler = any("blocks.0.0.q_layer_norm" in name for name in names)
    assert in_cross_attention == in_resampler == is_on


def test_dropout_is_an_option(small, make_batch):
    model = small(**{"model.dropout": 0.5}).train()
    batch = make_batch()
    assert not torch.equal(logits(model, batch), logits(model, batch))


def test_the_same_seed_builds_the_same_weights(small):
    first, second = small().state_dict(), small().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gates_may_be_vectors_and_start_at_random(small):
    fields = {"gate_type": "vector", "gate_initializer": "normal", "gate_deviation": 0.5}
    model = small(**{f"model.{name}": value for name, value in fields.items()})
    gate = model.model.gated_cross_attn_layers[0].alpha_cross_attn
    assert gate.shape == (1, 1, 32)
    assert gate.std() > 0.1

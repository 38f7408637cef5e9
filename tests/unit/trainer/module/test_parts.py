import pytest

from trainer.config import PARTS
from trainer.module.parts import can_learn, freeze, learners, part_of

EVERYTHING = {
    "self_attention_qk_norm": "rms",
    "norm_after_o": ["language", "cross_attention"],
    "norm_after_fc2": ["language", "cross_attention"],
}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "embeddings"),
        ("model.embed_tokens.additional_embedding.weight", "new_tokens"),
        ("lm_head.weight", "head"),
        ("lm_head.additional_fc.weight", "new_tokens"),
        ("model.layers.0.self_attn.q_proj.weight", "language_layers"),
        ("model.layers.0.self_attn.q_layer_norm.weight", "added_norms"),
        ("model.layers.0.self_attn.o_norm.weight", "added_norms"),
        ("model.layers.0.mlp.fc2_norm.weight", "added_norms"),
        ("model.layers.0.input_layernorm.weight", "language_norms"),
        ("model.norm.weight", "language_norms"),
        ("model.gated_cross_attn_layers.0.alpha_dense", "gates"),
        ("model.gated_cross_attn_layers.0.cross_attn.q_layer_norm.weight", "cross_attention"),
        ("model.gated_cross_attn_layers.0.mlp.fc2_norm.weight", "cross_attention"),
        ("model.gated_cross_attn_layers.0.input_layernorm.weight", "cross_attention"),
        ("model.perceiver_resampler.latents", "resampler"),
        ("model.perceiver_resampler.blocks.0.0.q_layer_norm.weight", "resampler"),
        ("model.vision_model.embeddings.class_embedding", "vision"),
        ("model.vision_model.encoder.layers.0.layer_norm1.bias", "vision_norms"),
        ("model.vision_model.encoder.layers.0.self_attn.q_proj.bias", "vision"),
        ("model.vision_model.pre_layrnorm.weight", "vision_norms"),
        ("model.vision_model.post_layernorm.weight", "vision_norms"),
        ("model.model.layers._orig_mod.1.mlp.up_proj.weight", "language_layers"),
    ],
)
def test_a_weight_belongs_to_the_part_that_its_name_says(small_model, name, part):
    assert part_of(name) == part


def test_every_weight_has_a_part_and_every_part_a_weight(small_model):
    model = small_model(**EVERYTHING)
    assert {part_of(name) for name, _ in model.named_parameters()} == set(PARTS)


def test_a_name_of_no_part_is_refused():
    with pytest.raises(ValueError, match=r"encoder\.weight"):
        part_of("encoder.weight")


@pytest.mark.parametrize("part", PARTS)
def test_a_frozen_part_has_no_gradient_and_all_others_learn(small_model, logits, part):
    model = small_model(freeze=[part], gate_initializer="ones", **EVERYTHING)
    logits(model).square().sum().backward()
    frozen = list(learners(model, [part]))
    assert frozen
    assert all(parameter.grad is None for parameter in frozen)
    learns = {part_of(name) for name, p in model.named_parameters() if p.grad is not None}
    assert learns == set(PARTS) - {part}


def test_the_norm_that_nobody_uses_does_not_wait_for_a_gradient(small_model, logits):
    model = small_model(gate_initializer="ones")
    logits(model).square().sum().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    assert silent == {f"model.vision_model.post_layernorm.{name}" for name in ("weight", "bias")}
    assert not any(p.requires_grad for name, p in model.named_parameters() if name in silent)


def test_freezing_anew_lets_the_others_learn(small_model):
    model = small_model(freeze=["vision", "head"])
    freeze(model, ["gates"])
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad and can_learn(n)}
    assert {part_of(name) for name in frozen} == {"gates"}

import pytest
import torch

from stabilizer.agent.probes.probe_set import ProbeSet
from trainer.module.norms import L2Norm

PLACES = ["qk_norm", "self_attention_qk_norm", "resampler.qk_norm"]
# Weights so large that neither the norms' own eps nor the depth hides what is tested.
OPEN = {"gate_initializer": "ones", "initializer_range": 0.3}


def attentions(model, place):
    body = model.model
    if place == "qk_norm":
        return [block.cross_attn for block in body.gated_cross_attn_layers]
    if place == "self_attention_qk_norm":
        return [layer.self_attn for layer in body.layers]
    return [attention for attention, _ in body.perceiver_resampler.blocks]


@torch.no_grad()
def grow(modules, factor):
    for module in modules:
        module.weight.mul_(factor)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["layer_norm", "rms", "l2"])
def test_with_a_norm_the_size_of_queries_and_keys_does_not_matter(small_model, logits, place, kind):
    model = small_model(**{place: kind}, **OPEN)
    before = logits(model)
    for attention in attentions(model, place):
        grow([attention.q_proj, attention.k_proj], 300.0)
    assert torch.allclose(logits(model), before, atol=1e-3)


@pytest.mark.parametrize("place", PLACES)
def test_without_a_norm_it_does(small_model, logits, place):
    model = small_model(**{place: "none"}, **OPEN)
    names = [name for name, _ in attentions(model, place)[0].named_parameters()]
    assert not any("layer_norm" in name for name in names if name.startswith(("q_", "k_")))
    before = logits(model)
    for attention in attentions(model, place):
        grow([attention.q_proj, attention.k_proj], 300.0)
    assert not torch.allclose(logits(model), before, atol=1e-3)


@pytest.mark.parametrize("place", PLACES)
def test_with_l2_a_score_is_a_cosine_times_one_number_that_learns(small_model, logits, place):
    model = small_model(**{place: "l2"}, **OPEN)
    attention = attentions(model, place)[0]
    seen = {}
    for name in ("q_layer_norm", "k_layer_norm"):
        getattr(attention, name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output})
        )
    logits(model).square().sum().backward()
    lengths = {name: vectors[0].norm(dim=-1) for name, vectors in seen.items()}  # no padding
    assert torch.allclose(lengths["k_layer_norm"], torch.ones(()), atol=1e-5)
    assert torch.allclose(lengths["q_layer_norm"], attention.q_layer_norm.scale, rtol=1e-5)
    assert attention.q_layer_norm.scale.grad.item() != 0
    assert [name for name, _ in attention.k_layer_norm.named_parameters()] == []


def test_l2_norm_of_nothing_is_nothing_and_of_nan_is_nan():
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0], [float("nan"), 1.0]])
    unit = L2Norm(2.0)(vectors)
    assert torch.equal(unit[0], torch.zeros(2))
    assert torch.allclose(unit[1], torch.tensor([1.2, 1.6]))
    assert unit[2].isnan().all()


def shift(logits, model):
    positions = torch.arange(12).expand(2, 12)
    return [logits(model, position_ids=positions + start) for start in (0, 7)]


@torch.no_grad()
def vary_scales(model):
    for attention in attentions(model, "self_attention_qk_norm"):
        for norm in (attention.q_layer_norm, attention.k_layer_norm):
            norm.weight.uniform_(0.5, 10.0)


@pytest.mark.parametrize("kind", ["layer_norm", "rms"])
def test_scores_depend_on_distances_only_whatever_the_scales_have_learned(
    small_model, logits, kind
):
    model = small_model(self_attention_qk_norm=kind)
    vary_scales(model)
    here, there = shift(logits, model)
    assert torch.allclose(here, there, atol=1e-5)


def test_norms_behind_the_rotation_would_depend_on_the_place(small_model, logits):
    model = small_model(self_attention_qk_norm="rms")
    vary_scales(model)
    for attention in attentions(model, "self_attention_qk_norm"):
        attention.qk_layer_norms = True
        attention.is_cross_attention = None  # takes the way of transformers
        attention.__class__ = type(attention).__mro__[1]
    here, there = shift(logits, model)
    assert not torch.allclose(here, there, atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_normed_self_attention_is_causal_and_sees_no_padding(
    small_model, logits, inputs, implementation
):
    model = small_model(self_attention_qk_norm="rms", attention=implementation)
    before = logits(model)
    ids = inputs["input_ids"].clone()
    ids[0, 8] = 3 if ids[0, 8] != 3 else 4
    after = logits(model, input_ids=ids)
    assert torch.equal(before[0, :8], after[0, :8])
    assert not torch.equal(before[0, 8:], after[0, 8:])


@pytest.mark.parametrize(
    ("field", "block", "projections"),
    [
        ("norm_after_o", "language", "self_attn.o_proj"),
        ("norm_after_o", "cross_attention", "cross_attn.o_proj"),
        ("norm_after_fc2", "language", "mlp.down_proj"),
        ("norm_after_fc2", "cross_attention", "mlp.down_proj"),
    ],
)
def test_behind_an_outer_norm_the_size_of_the_projection_does_not_matter(
    small_model, logits, field, block, projections
):
    model = small_model(**{field: [block]}, **OPEN)
    body = model.model
    layers = body.layers if block == "language" else body.gated_cross_attn_layers
    outer = [layer.get_submodule(projections) for layer in layers]
    before = logits(model)
    grow(outer, 30.0)
    assert torch.allclose(logits(model), before, atol=1e-3)


@pytest.mark.parametrize("field", ["norm_after_o", "norm_after_fc2"])
def test_outer_norms_are_in_the_blocks_that_are_named_only(small_model, field):
    def holders(*blocks):
        names = {name for name, _ in small_model(**{field: blocks}).named_parameters()}
        added = names - {name for name, _ in small_model().named_parameters()}
        return {name.split(".")[1] for name in added}

    assert holders() == set()
    assert holders("language") == {"layers"}
    assert holders("cross_attention") == {"gated_cross_attn_layers"}
    assert holders("language", "cross_attention") == {"layers", "gated_cross_attn_layers"}


def measure(model, logits):
    probes = ProbeSet(model)
    with probes:
        probes.begin_step(sampled=True)
        logits(model).square().sum().backward()
        probes.after_backward()
        frames = probes.end_step(1, 0.0)
    found = {}
    for catalog, block in frames.blocks():
        present = block.present[0] if block.present is not None else [True] * len(catalog)
        for key, value, given in zip(catalog.series, block.values[0], present, strict=True):
            if given:
                found[str(key)] = float(value)
    return found


def test_the_agent_sees_what_the_outer_projection_puts_out_before_its_norm(small_model, logits):
    model = small_model(norm_after_o=["language"], norm_after_fc2=["language"]).train()
    before = measure(model, logits)
    outer = [layer.get_submodule(name) for layer in model.model.layers
             for name in ("self_attn.o_proj", "mlp.down_proj")]  # fmt: skip
    grow(outer, 100.0)
    after = measure(model, logits)
    language = [name for name in before if name.startswith("activation_rms") and "language" in name]
    names = [name for name in language if "o_proj" in name or "down_proj" in name]
    assert len(names) == 8
    for name in names:
        assert after[name] > 50 * before[name]


def test_the_agent_measures_attentions_with_every_norm(small_model, logits):
    model = small_model(
        **{"qk_norm": "l2", "self_attention_qk_norm": "rms", "resampler.qk_norm": "l2"}
    )
    found = measure(model.train(), logits)
    measured = {name for name in found if name.startswith("attention_entropy")}
    assert len(measured) == 2 * (4 + 2 + 2 + 2)  # language, cross, resampler, vision; min and mean
    assert all(0.0 <= found[name] <= 1.0 for name in measured)


def test_closed_gates_keep_the_language_model_whatever_norms_the_blocks_have(small_model, logits):
    bare = small_model()
    normed = small_model(
        qk_norm="layer_norm", norm_after_o=["cross_attention"], norm_after_fc2=["cross_attention"]
    )
    normed.load_state_dict(bare.state_dict(), strict=False)
    assert torch.equal(logits(bare), logits(normed))

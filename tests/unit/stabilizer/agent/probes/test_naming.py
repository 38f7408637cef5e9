import pytest
from torch import nn

from stabilizer.agent.probes.naming import describe, find_head
from stabilizer.errors import ConfigurationError


def _described(model: nn.Module) -> dict[str, tuple[str, int | None, str]]:
    return {s.name: (s.kind.value, s.layer, s.tower.value) for s in describe(model)}


def test_idefics_is_known_in_all_its_towers(make_idefics):
    sites = _described(make_idefics())

    vision = "model.vision_model.encoder.layers.1"
    assert sites[f"{vision}.self_attn"] == ("attention", 1, "vision")
    assert sites[f"{vision}.self_attn.q_proj"] == ("q_proj", 1, "vision")
    assert sites[f"{vision}.self_attn.out_proj"] == ("o_proj", 1, "vision")
    assert sites[f"{vision}.mlp.fc1"] == ("fc1", 1, "vision")
    assert sites[f"{vision}.mlp.fc2"] == ("fc2", 1, "vision")
    perceiver = "model.perceiver_resampler.blocks.1"
    assert sites[f"{perceiver}.0"] == ("attention", 1, "resampler")
    assert sites[f"{perceiver}.0.k_proj"] == ("k_proj", 1, "resampler")
    assert sites[f"{perceiver}.0.output_proj"] == ("o_proj", 1, "resampler")
    assert sites[f"{perceiver}.1.fc"] == ("fc1", 1, "resampler")
    assert sites[f"{perceiver}.1.c_proj"] == ("fc2", 1, "resampler")
    text = "model.layers.1"
    assert sites[f"{text}.self_attn.v_proj"] == ("v_proj", 1, "language")
    assert sites[f"{text}.self_attn.o_proj"] == ("o_proj", 1, "language")
    assert sites[f"{text}.mlp.up_proj"] == ("fc1", 1, "language")
    assert sites[f"{text}.mlp.down_proj"] == ("fc2", 1, "language")
    gated = "model.gated_cross_attn_layers.0"
    assert sites[f"{gated}.cross_attn"] == ("attention", 0, "cross_attention")
    assert sites[f"{gated}.mlp.down_proj"] == ("fc2", 0, "cross_attention")
    assert sites[f"{gated}.alpha_cross_attn"] == ("gate", 0, "cross_attention")
    assert sites[f"{gated}.alpha_dense"] == ("gate", 0, "cross_attention")
    assert sites["lm_head"] == ("head", None, "language")


def test_gated_blocks_count_themselves(make_idefics):
    sites = _described(make_idefics(num_hidden_layers=4))

    layers = {layer for name, (_, layer, _) in sites.items() if "gated_cross_attn_layers" in name}
    assert layers == {0, 1}
    assert sites["model.layers.3.mlp.down_proj"][1] == 3


def test_every_projection_of_idefics_is_described(make_idefics):
    model = make_idefics()
    linear = {module for module in model.modules() if isinstance(module, nn.Linear)}
    assert {site.module for site in describe(model)} >= linear


@pytest.fixture
def quiet_transformers():
    transformers = pytest.importorskip("transformers")
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield transformers
    transformers.logging.set_verbosity(before)


def test_llama(quiet_transformers):
    config = quiet_transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
    )
    sites = _described(quiet_transformers.LlamaForCausalLM(config))

    assert sites["model.layers.1.self_attn.k_proj"] == ("k_proj", 1, "language")
    assert sites["model.layers.1.mlp.gate_proj"] == ("fc1", 1, "language")
    assert sites["model.layers.1.mlp.down_proj"] == ("fc2", 1, "language")
    assert sites["lm_head"][0] == "head"


def test_gpt2_whose_projections_share_a_name(quiet_transformers):
    config = quiet_transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20)
    model = quiet_transformers.GPT2LMHeadModel(config)
    sites = _described(model)

    assert sites["transformer.h.1.attn"] == ("attention", 1, "language")
    assert sites["transformer.h.1.attn.c_proj"] == ("o_proj", 1, "language")
    assert sites["transformer.h.1.mlp.c_proj"] == ("fc2", 1, "language")
    assert find_head(model, None) is model.lm_head  # tied to the embedding, and still the head


def test_vit_and_bert(quiet_transformers):
    size = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    vit_config = quiet_transformers.ViTConfig(image_size=8, patch_size=4, **size)
    vit = _described(quiet_transformers.ViTModel(vit_config))
    towers = {tower for _, _, tower in vit.values()}
    kinds = {kind for kind, _, _ in vit.values()}
    assert towers == {"vision"}
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "attention"} == kinds

    bert_config = quiet_transformers.BertConfig(vocab_size=20, **size)
    bert = _described(quiet_transformers.BertModel(bert_config))
    assert bert["encoder.layer.1.attention.self.query"] == ("q_proj", 1, "language")
    assert bert["encoder.layer.1.attention.output.dense"] == ("o_proj", 1, "language")
    assert bert["encoder.layer.1.intermediate.dense"] == ("fc1", 1, "language")
    assert bert["encoder.layer.1.output.dense"] == ("fc2", 1, "language")


def test_torch_layers_and_what_their_output_is_taken_from():
    layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerDecoder(layer, 2)
    sites = {site.name: site for site in describe(model)}

    assert sites["layers.1.self_attn.out_proj"].kind == "o_proj"
    assert sites["layers.1.multihead_attn.out_proj"].tower == "cross_attention"
    assert sites["layers.1.linear2"].kind == "fc2"
    # MultiheadAttention never calls its out_proj: its own output is the projection's.
    out = sites["layers.1.self_attn.out_proj"]
    assert out.observed is model.layers[1].self_attn
    assert sites["layers.1.linear2"].observed is model.layers[1].linear2


class _Wrapping(nn.Module):
    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, inner)


def test_a_wrapped_projection_is_listed_once():
    wrapped = _Wrapping(nn.Linear(2, 2), "_fsdp_wrapped_module")
    layer = nn.ModuleDict({"fc1": nn.Linear(2, 2), "fc2": wrapped})
    sites = describe(nn.ModuleDict({"layers": nn.ModuleList([layer])}))
    assert [site.name for site in sites] == ["layers.0.fc1", "layers.0.fc2"]


def test_wrappers_do_not_show_in_names(make_idefics):
    model = make_idefics()
    names = [site.name for site in describe(model)]

    lightning = _Wrapping(model, "model")
    assert [site.name for site in describe(lightning)] == names
    assert [site.name for site in describe(_Wrapping(lightning, "module"))] == names
    assert [site.name for site in describe(_Wrapping(model, "_orig_mod"))] == names
    wrapped = _Wrapping(nn.TransformerEncoderLayer(16, 2, 32), "_checkpoint_wrapped_module")
    assert set(_described(nn.ModuleDict({"layers": nn.ModuleList([wrapped])}))) == {
        "layers.0.self_attn",
        "layers.0.self_attn.out_proj",
        "layers.0.linear1",
        "layers.0.linear2",
    }


def test_classification_heads_and_plain_networks_are_left_out():
    resnet_like = nn.Module()
    resnet_like.fc = nn.Linear(4, 2)
    assert describe(resnet_like) == []
    assert describe(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == []
    assert describe(nn.Module()) == []


def test_a_shared_module_is_listed_once():
    shared = nn.TransformerEncoderLayer(16, 2, 32)
    sites = _described(nn.ModuleDict({"layers": nn.ModuleList([shared, shared])}))
    assert set(sites) == {f"layers.0.{name}" for name in _described_layer(shared)}


def _described_layer(layer: nn.Module) -> list[str]:
    named = nn.ModuleDict({"layers": nn.ModuleList([layer])})
    return [site.name.removeprefix("layers.0.") for site in describe(named)]


def test_the_head_by_name(make_idefics):
    model = make_idefics()
    assert find_head(model, None) is model.lm_head
    assert find_head(_Wrapping(model, "model"), "lm_head") is model.lm_head
    assert find_head(_Wrapping(model, "model"), "model.lm_head") is model.lm_head
    assert find_head(nn.Linear(2, 2), None) is None
    with pytest.raises(ConfigurationError, match="head is 'decoder'"):
        find_head(model, "decoder")

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

from stabilizer.errors import ConfigurationError
from trainer.module import build_model, build_skeleton, materialise
from trainer.module.pretrained import open_pretrained

LLAMA = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "hidden_act": "gelu",
}


@pytest.fixture
def llama(tmp_path):
    """Return a function that saves a small Llama; gives the model and its folder."""

    def make(kind=LlamaForCausalLM, **options):
        torch.manual_seed(5)
        model = kind(LlamaConfig(**(LLAMA | options))).eval()
        folder = tmp_path / f"llama{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        return model, str(folder)

    return make


@pytest.fixture
def clip(tmp_path):
    def make(kind=CLIPVisionModel, **options):
        torch.manual_seed(6)
        config = CLIPVisionConfig(**(VISION | options))
        if kind is CLIPModel:
            text = CLIPTextConfig(
                vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                num_attention_heads=1,
            )  # fmt: skip
            config = CLIPConfig(text_config=text.to_dict(), vision_config=config.to_dict())
        model = kind(config).eval()
        folder = tmp_path / f"clip{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        return model, str(folder)

    return make


def mistakes(config):
    with pytest.raises(ConfigurationError) as caught:
        build_model(config)
    return caught.value.message.splitlines()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_with_closed_gates_it_says_what_its_language_model_says(
    model_config, llama, logits, inputs, attention
):
    bare, folder = llama()
    config = model_config(pretrained__language=folder, attention=attention)
    model = build_model(config).eval()
    real = inputs["attention_mask"].bool()
    ids = inputs["input_ids"].clamp(max=49)
    with torch.no_grad():
        expected = bare(input_ids=ids, attention_mask=inputs["attention_mask"]).logits
        found = logits(model, input_ids=ids)
    assert found.shape[-1] == 52  # the additional tokens' logits come last
    assert torch.allclose(found[..., :50][real], expected[real], atol=1e-5)
    assert expected[real].std() > 0.1


def test_what_is_not_loaded_starts_at_random_as_ever(model_config, llama):
    _, folder = llama()
    torch.manual_seed(0)
    model = build_model(model_config(pretrained__language=folder, self_attention_qk_norm="l2"))
    block = model.model.gated_cross_attn_layers[0]
    assert block.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert block.alpha_dense.item() == 0.0
    assert torch.equal(block.input_layernorm.weight, torch.ones(32))
    assert model.model.layers[0].self_attn.q_layer_norm.scale.item() > 1.0
    assert model.model.perceiver_resampler.latents.std().item() == pytest.approx(1.0, rel=0.3)
    new = model.model.embed_tokens.additional_embedding.weight
    assert new.std().item() == pytest.approx(0.02, rel=0.3)


def test_a_tied_head_is_the_embedding_and_learns_apart(model_config, llama):
    _, folder = llama(tie_word_embeddings=True)
    model = build_model(model_config(pretrained__language=folder))
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()


def test_a_model_without_a_head_and_without_a_tie_is_reported(model_config, llama):
    _, folder = llama(LlamaModel)
    (line,) = mistakes(model_config(pretrained__language=folder))
    assert line.endswith("lm_head.weight: missing, expected with shape [50, 32]")


def test_norms_are_the_language_models_own(model_config, llama, logits, inputs):
    bare, folder = llama(
        rms_norm_eps=1e-2, rope_parameters={"rope_theta": 50.0, "rope_type": "default"}
    )
    lines = mistakes(model_config(pretrained__language=folder))
    assert [line.rpartition("json: ")[2] for line in lines] == [
        "rms_norm_eps is 0.01, and 1e-06 is configured",
        "rope_parameters.rope_theta is 50.0, and 10000.0 is configured",
    ]
    config = model_config(pretrained__language=folder, norm_eps=1e-2, rope_theta=50.0)
    model = build_model(config).eval()
    ids = inputs["input_ids"][:1].clamp(max=49)
    with torch.no_grad():
        expected = bare(input_ids=ids).logits
        found = logits(model, input_ids=inputs["input_ids"].clamp(max=49))[:1, :, :50]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [CLIPVisionModel, CLIPModel])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_encoder_sees_what_its_clip_sees(model_config, clip, inputs, kind, activation):
    bare, folder = clip(kind, hidden_act=activation)
    config = model_config(pretrained__vision=folder, vision__activation=activation)
    model = build_model(config).eval()
    pixels = inputs["pixel_values"].flatten(0, 1)
    encoder = bare.vision_model if kind is CLIPModel else bare
    with torch.no_grad():
        expected = encoder(pixel_values=pixels).last_hidden_state
        found = model.model.vision_model(pixel_values=pixels).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_whole_idefics_comes_back_with_norms_added(model_config, small_model, tmp_path, logits):
    saved = small_model(gate_initializer="ones")
    saved.save_pretrained(tmp_path / "whole")
    config = model_config(pretrained__whole=str(tmp_path / "whole"))
    model = build_model(config)
    assert torch.equal(logits(model), logits(saved))
    added = build_model(
        model_config(
            pretrained__whole=str(tmp_path / "whole"),
            norm_after_o=["language", "cross_attention"],
            self_attention_qk_norm="rms",
        )
    )
    ours, theirs = dict(added.named_parameters()), dict(saved.named_parameters())
    assert theirs.keys() < ours.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert all((ours[name] == 1).all() for name in ours.keys() - theirs.keys())


def test_a_language_model_is_no_whole_idefics(model_config, llama):
    _, folder = llama()
    lines = mistakes(model_config(pretrained__whole=folder))
    assert any("model_type is 'llama', and 'idefics' is configured" in line for line in lines)
    assert lines[-1].endswith(" more")
    assert len(lines) == 21


def test_formats_are_those_asked_for(model_config, llama, clip, logits):
    (_, folder), (_, vision) = llama(dtype="bfloat16"), clip()
    fields = {f"pretrained.{name}": value for name, value in
              {"language": folder, "vision": vision, "dtype": "bfloat16"}.items()}  # fmt: skip
    model = build_model(model_config(**fields, freeze=["language_layers", "head"]))
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes["model.layers.0.mlp.up_proj.weight"] == torch.bfloat16
    assert dtypes["lm_head.weight"] == torch.bfloat16
    assert dtypes["model.perceiver_resampler.latents"] == torch.float32
    assert dtypes["lm_head.additional_fc.weight"] == torch.float32
    assert not model.model.layers[0].mlp.up_proj.weight.requires_grad
    assert model.model.perceiver_resampler.latents.requires_grad
    assert dtypes["model.embed_tokens.weight"] == torch.float32
    assert dtypes["model.vision_model.embeddings.patch_embedding.weight"] == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        found = logits(model)
    assert torch.isfinite(found).all()
    found.float().square().mean().backward()
    assert model.model.vision_model.encoder.layers[0].mlp.fc1.weight.grad is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_random_model_has_the_format_asked_for(small_model, dtype):
    model = small_model(dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert model.model.layers[0].self_attn.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


def test_every_difference_of_every_source_is_reported_at_once(model_config, llama, clip, tmp_path):
    _, language = llama(intermediate_size=40, vocab_size=51, num_attention_heads=4)
    _, vision = clip(num_hidden_layers=1, hidden_act="relu")
    lines = mistakes(model_config(pretrained__language=language, pretrained__vision=vision))
    fields = (f"model.pretrained.language: {language}: ", f"model.pretrained.vision: {vision}: ")
    assert all(line.startswith(fields) for line in lines)
    told = "\n".join(lines)
    for part in (
        "intermediate_size is 40, and 48 is configured",
        "vocab_size is 51, and 50 is configured",
        "num_attention_heads is 4, and 2 is configured",
        "model.embed_tokens.weight: shape [51, 32] found, expected [50, 32]",
        "mlp.down_proj.weight: shape [32, 40] found, expected [32, 48]",
        "vision_config.num_hidden_layers is 1, and 2 is configured",
        "vision_config.hidden_act is 'relu', and 'gelu' is configured",
        "encoder.layers.1.mlp.fc1.weight: missing, expected with shape [24, 16]",
    ):
        assert part in told


def test_shared_heads_of_keys_are_reported(model_config, llama):
    _, folder = llama(num_key_value_heads=1)
    lines = mistakes(model_config(pretrained__language=folder))
    assert "num_key_value_heads is 1, and 2 is configured" in lines[0]


def test_a_tensor_that_the_model_lacks_is_reported(model_config, llama):
    _, folder = llama()
    path = f"{folder}/model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)  # old files have it
    save_file(tensors, path)
    (line,) = mistakes(model_config(pretrained__language=folder))
    assert line.endswith("q_proj.bias: found with shape [32], the model has none")


@pytest.mark.parametrize("text", [None, "{", '{"model_type": "unheard"}'])
def test_a_configuration_that_cannot_be_read_is_reported(model_config, llama, tmp_path, text):
    _, folder = llama()
    path = tmp_path / folder / "config.json"
    path.unlink() if text is None else path.write_text(text)
    lines = mistakes(model_config(pretrained__language=folder))
    assert "config.json cannot be read" in lines[0]


def test_code_that_comes_with_a_model_is_not_run(model_config, llama, tmp_path):
    _, folder = llama()
    path = tmp_path / folder / "config.json"
    content = json.loads(path.read_text())
    content |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    path.write_text(json.dumps(content))
    (tmp_path / folder / "evil.py").write_text("raise SystemExit('run')\n")
    lines = mistakes(model_config(pretrained__language=folder))
    assert "config.json cannot be read" in lines[0]


def test_a_skeleton_has_no_memory_and_keeps_what_is_frozen(model_config, llama):
    _, folder = llama()
    config = model_config(pretrained__language=folder, freeze=["language_layers"])
    model = build_skeleton(config)
    tensors = [*model.parameters(), *model.buffers()]
    assert all(tensor.is_meta for tensor in tensors)
    weights = open_pretrained(config, model)
    assert "model.layers.3.mlp.up_proj.weight" in weights.names
    torch.manual_seed(0)
    materialise(model, weights, device=torch.device("cpu"))
    torch.manual_seed(0)
    direct = build_model(config)
    for name, value in direct.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for name, buffer in direct.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], buffer), name
    assert not model.model.layers[0].mlp.up_proj.weight.requires_grad


def test_a_materialised_model_is_a_built_one_but_for_the_random_numbers(model_config, small_model):
    config = model_config(resampler__qk_norm="l2")
    model = build_skeleton(config)
    torch.manual_seed(0)
    materialise(model, device=torch.device("cpu"))
    built = small_model(resampler__qk_norm="l2")
    for (name, drawn), (_, expected) in zip(
        model.named_parameters(), built.named_parameters(), strict=True
    ):
        assert drawn.mean().item() == pytest.approx(expected.mean().item(), abs=0.3), name
        if expected.numel() > 500:
            assert drawn.std().item() == pytest.approx(expected.std().item(), rel=0.2), name
    for name, buffer in built.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], buffer), name

"""The big presets against the published models, on the meta device.

References: the numbers of `config.json` of HuggingFaceM4/idefics-9b-instruct and -80b-instruct,
given to transformers' own `IdeficsConfig`; LLaMA-7B and -65B (arXiv:2302.13971, table 2) and CLIP
ViT-H/14 (laion/CLIP-ViT-H-14-laion2B-s32B-b79K), whose weights transformers' own classes count.
"""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    LlamaConfig,
    LlamaForCausalLM,
)

from stabilizer.errors import ConfigurationError
from trainer.config import load_config
from trainer.module import build_skeleton, open_pretrained
from trainer.module.parts import part_of
from trainer.module.sizes import count_weights

LANGUAGE = {
    "idefics-9b": {
        "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
        "intermediate_size": 11008, "rms_norm_eps": 1e-6,
    },
    "idefics-80b": {
        "num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64,
        "intermediate_size": 22016, "rms_norm_eps": 1e-5,
    },
}  # fmt: skip
VISION = {
    "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120,
    "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
}  # fmt: skip
PUBLISHED = sorted(LANGUAGE)
FROZEN = {"language_layers", "language_norms", "embeddings", "head", "vision", "vision_norms"}


@pytest.fixture(scope="module", params=PUBLISHED)
def preset(request):
    return request.param


@pytest.fixture(scope="module")
def skeletons():
    return {name: build_skeleton(load_config(name).model) for name in PUBLISHED}


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def count(model, parts=None):
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if parts is None or part_of(name) in parts)


def test_every_weight_has_the_name_and_shape_of_the_published_model(preset, skeletons):
    published = IdeficsConfig(
        **LANGUAGE[preset],
        vocab_size=32000, additional_vocab_size=2, max_position_embeddings=2048,
        cross_layer_interval=4, qk_layer_norms=True, alpha_type="float", use_resampler=True,
        vision_config={"embed_dim": 1280, **VISION},
        perceiver_config={
            "use_resampler": True, "resampler_depth": 6, "resampler_n_latents": 64,
            "resampler_n_heads": 16, "resampler_head_dim": 96, "qk_layer_norms_perceiver": True,
        },
    )  # fmt: skip
    with torch.device("meta"):
        expected = IdeficsForVisionText2Text(published)
    assert shapes(skeletons[preset]) == shapes(expected)


def test_the_parts_are_as_large_as_the_models_that_they_come_from(preset, skeletons):
    model = skeletons[preset]
    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig(**LANGUAGE[preset], vocab_size=32000))
        clip = CLIPVisionModel(CLIPVisionConfig(hidden_size=1280, **VISION))
    language = {"language_layers", "language_norms", "embeddings", "head"}
    assert count(model, language) == count(llama, language)
    assert count(model, {"vision", "vision_norms"}) == sum(p.numel() for p in clip.parameters())


@pytest.mark.parametrize("kind", ["language", "vision", "whole"])
def test_the_presets_fit_what_they_start_from(preset, skeletons, kind, tmp_path):
    """Their `config.json` as old repositories have it: without what transformers 5 writes.

    The weights are left out, so loading is refused: for them, and for nothing else.
    """
    llama = {"vocab_size": 32000, "hidden_act": "silu", **LANGUAGE[preset]}
    perceiver = {"resampler_n_heads": 16, "resampler_head_dim": 96}
    content = {
        "language": {"model_type": "llama", **llama},
        "vision": {
            "model_type": "clip",
            "text_config": {"hidden_size": 1024, "hidden_act": "gelu"},
            "vision_config": {"hidden_size": 1280, **VISION},
        },
        "whole": {
            "model_type": "idefics", **llama, "additional_vocab_size": 2,
            "use_resampler": True, "cross_layer_interval": 4,
            "vision_config": {"embed_dim": 1280, **VISION},
            "perceiver_config": perceiver,
        },
    }[kind]  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors")
    config = load_config(preset, fields={"model.pretrained": {kind: str(tmp_path)}}).model
    with pytest.raises(ConfigurationError, match="missing") as caught:
        open_pretrained(config, skeletons[preset])
    assert "config.json" not in caught.value.message


@pytest.mark.parametrize(
    ("preset", "total", "trainable", "language"),
    [
        ("idefics-9b", 8_929_679_632, 1_560_497_936, 6_738_415_616),
        ("idefics-80b", 79_967_843_624, 14_051_416_872, 65_285_660_672),
    ],
)
def test_the_counts_are_the_published_ones(preset, total, trainable, language):
    sizes = count_weights(load_config(preset).model)
    assert (sizes.total, sizes.trainable) == (total, trainable)
    assert round(sizes.total / 1e9) == int(preset.removeprefix("idefics-").removesuffix("b"))
    frozen = sum(number for part, number in sizes.by_part.items() if part in FROZEN)
    assert frozen == total - trainable
    assert sizes.by_part["vision"] + sizes.by_part["vision_norms"] == 630_766_080
    assert frozen - 630_766_080 == language


@pytest.mark.parametrize(
    ("preset", "layers", "blocks"), [("idefics-9b", 32, 8), ("idefics-80b", 80, 20)]
)
def test_layers_and_blocks_are_the_published_ones(skeletons, preset, layers, blocks):
    body = skeletons[preset].model
    assert (len(body.layers), len(body.gated_cross_attn_layers)) == (layers, blocks)
    assert body.cross_layer_interval == 4
    assert len(body.vision_model.encoder.layers) == 32
    assert len(body.perceiver_resampler.blocks) == 6
    assert body.perceiver_resampler.latents.shape == (64, 1280)
    attention = body.perceiver_resampler.blocks[0][0]
    assert (attention.n_heads, attention.head_dim) == (16, 96)
    assert attention.q_layer_norm.weight.shape == (96,)
    block = body.gated_cross_attn_layers[-1]
    assert type(block.cross_attn.q_layer_norm).__name__ == "IdeficsRMSNorm"
    assert block.cross_attn.q_layer_norm.weight.shape == (128,)
    assert block.alpha_cross_attn.shape == (1,)
    assert {
        part_of(n) for n, p in skeletons[preset].named_parameters() if not p.requires_grad
    } == FROZEN


@pytest.mark.parametrize(
    ("preset", "rate", "last", "tokens"),
    [("idefics-9b", 1e-5, 6e-6, 1.31e6), ("idefics-80b", 5e-5, 3e-5, 3.67e6)],
)
def test_the_training_is_the_published_one(preset, rate, last, tokens):
    config = load_config(preset)
    optimizer, training = config.optimizer, config.training
    assert optimizer.learning_rate == rate
    assert optimizer.learning_rate * optimizer.final_ratio == pytest.approx(last)
    assert (optimizer.schedule, optimizer.warmup_steps) == ("linear", 2000)
    assert (optimizer.betas, optimizer.weight_decay) == ((0.9, 0.999), 0.1)
    assert (optimizer.gradient_clip, optimizer.z_loss_weight) == (1.0, 1e-3)
    assert (training.precision, training.steps) == ("bf16", 200_000)
    sequences = config.data.batch_size * training.accumulate * training.processes
    assert sequences * config.data.sequence_length == pytest.approx(tokens, rel=2e-3)
    assert config.data.sequence_length == 1024
    assert config.model.activation_checkpointing
    assert config.model.gate_initializer == "zeros"


def test_sources_are_read_in_the_published_shares_of_tokens(preset):
    weights = {name: source.weight for name, source in load_config(preset).data.sources.items()}
    tokens_of_a_document = {"obelics": 816, "wikipedia": 500, "laion": 27, "pmd": 23}
    tokens = {name: weight * tokens_of_a_document[name] for name, weight in weights.items()}
    shares = {name: 100 * part / sum(tokens.values()) for name, part in tokens.items()}
    published = {"obelics": 73.85, "wikipedia": 6.15, "laion": 17.18, "pmd": 2.82}
    assert shares == pytest.approx(published, abs=0.3)


@pytest.mark.parametrize(
    ("preset", "low", "high"),
    [("idefics-tiny", 1.8e6, 2.4e6), ("idefics-20m", 18e6, 22e6), ("idefics-1b", 0.9e9, 1.1e9)],
)
def test_the_other_presets_are_as_large_as_their_names_say(preset, low, high):
    model = load_config(preset).model
    sizes = count_weights(model)
    assert low < sizes.total < high
    assert sizes.trainable == sizes.total - 2 * model.vision.hidden_size  # the idle norm

import pytest

from stabilizer.errors import ConfigurationError
from trainer.config import load_config

FROZEN = "model.freeze=[vision, language_norms]"


@pytest.mark.parametrize(
    ("field", "published"), [("model.qk_norm", "rms"), ("model.resampler.qk_norm", "layer_norm")]
)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("true", None),
        ("false", "none"),
        ("none", "none"),
        ("l2", "l2"),
        ("layer_norm", "layer_norm"),
    ],
)
def test_true_is_the_published_norm_and_false_none(field, published, given, expected):
    model = load_config("idefics-tiny", [f"{field}={given}"]).model
    found = model.qk_norm if field == "model.qk_norm" else model.resampler.qk_norm
    assert found == (expected or published)


def test_parts_unfreeze_by_step():
    model = load_config(
        "idefics-tiny", [FROZEN, "model.unfreeze=[{step: 100, parts: [language_norms]}]"]
    ).model
    assert model.freeze == ("vision", "language_norms")
    assert [(change.step, change.parts) for change in model.unfreeze] == [
        (100, ("language_norms",))
    ]


@pytest.mark.parametrize(
    ("override", "field", "allowed"),
    [
        ("model.qk_norm=sideways", "model.qk_norm", "layer_norm"),
        ("model.self_attention_qk_norm=true", "model.self_attention_qk_norm", "rms"),
        ("model.resampler.qk_norm=2", "model.resampler.qk_norm", "l2"),
        ("model.norm_after_o=[vision]", "model.norm_after_o.0", "cross_attention"),
        ("model.freeze=[visions]", "model.freeze.0", "vision_norms"),
        ("model.freeze=[vision, vision]", "model.freeze", "each part once"),
        ("model.freeze_language=true", "model.freeze_language", "allowed: freeze"),
        ("model.unfreeze=[{step: 0, parts: [vision]}]", "model.unfreeze.0.step", "at least 1"),
        ("model.unfreeze=[{step: 3, parts: []}]", "model.unfreeze.0.parts", "at least 1"),
        ("model.unfreeze=[{step: 3, parts: [head]}]", "model.unfreeze.parts", "model.freeze"),
        (
            "model.unfreeze=[{step: 3, parts: [vision]}, {step: 5, parts: [vision]}]",
            "model.unfreeze.parts",
            "no other step",
        ),
        ("model.pretrained.language=' '", "model.pretrained.language", "a folder"),
        ("model.pretrained={whole: a, vision: b}", "model.pretrained.whole", "null beside"),
        ("model.pretrained.dtype=float64", "model.pretrained.dtype", "bfloat16"),
        ("model.dtype=int8", "model.dtype", "float16"),
        ("model.attention=flash", "model.attention", "eager"),
        ("model.additional_tokens=-1", "model.additional_tokens", "at least 0"),
        ("model.norm_eps=0", "model.norm_eps", "above 0"),
        ("model.rope_theta=.nan", "model.rope_theta", "a finite number"),
        ("model.vision.activation=relu", "model.vision.activation", "quick_gelu"),
    ],
)
def test_a_knob_that_cannot_be_turned_so_is_named_with_what_is_allowed(override, field, allowed):
    with pytest.raises(ConfigurationError) as caught:
        load_config("idefics-tiny", [FROZEN, override])
    line = next(line for line in caught.value.message.splitlines() if f"{field}: " in line)
    assert allowed in line


def test_two_formats_need_mixed_precision():
    fields = ["model.pretrained={vision: somewhere, dtype: bfloat16}"]
    with pytest.raises(ConfigurationError, match=r"training\.precision: 'fp32' cannot be used"):
        load_config("idefics-tiny", fields)
    config = load_config("idefics-tiny", [*fields, "training.precision=bf16"])
    assert config.model.has_two_formats
    same = load_config("idefics-tiny", [*fields, "model.dtype=bfloat16"])
    assert not same.model.has_two_formats


def test_without_knobs_the_model_is_the_published_architecture():
    model = load_config("idefics-tiny").model
    assert (model.qk_norm, model.resampler.qk_norm) == ("rms", "layer_norm")
    assert model.self_attention_qk_norm == "none"
    assert (model.norm_after_o, model.norm_after_fc2, model.freeze, model.unfreeze) == ((),) * 4
    assert not model.pretrained.is_given
    assert model.total_vocabulary == model.vocabulary_size == 640

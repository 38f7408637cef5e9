import re
from importlib import resources

import pytest
from pydantic import ValidationError

from stabilizer.errors import ConfigurationError
from stabilizer.rules.loader import load_rules
from trainer.config import PackingConfig, config_to_yaml, load_config, preset_names
from trainer.config.drafts import safe_yaml
from trainer.config.loading import parse_config


def test_presets_are_those_beside_the_package_without_policies():
    sizes = ["1b", "20m", "80b", "9b", "tiny"]
    assert preset_names() == [f"idefics-{size}" for size in sizes]


def test_rules_beside_a_preset_load():
    files = [f for f in resources.files("trainer.presets").iterdir() if ".policy." in f.name]
    assert {file.name.partition(".")[0] for file in files} == {"idefics-tiny"}
    for file in files:
        assert load_rules(file.read_text("utf-8")).policy.ladder


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_reads_back_from_what_is_shown_of_it(preset):
    config = load_config(preset)
    assert parse_config(safe_yaml().load(config_to_yaml(config))) == config
    assert config.monitor.run == preset


def test_faults_are_off_by_default():
    faults = load_config("idefics-tiny").faults
    assert faults == {}


def test_yaml_of_a_config_reads_back_as_the_same_config():
    config = load_config(
        "idefics-tiny",
        ["faults.lr_restart.step=3", "faults.lr_restart.factor=40", "optimizer.betas=[0.8, 0.9]"],
    )
    assert parse_config(safe_yaml().load(config_to_yaml(config))) == config


def test_later_overrides_win_and_fields_win_over_all():
    overrides = ["training.steps=200", "training.steps=300", "training.seed=4"]
    config = load_config("idefics-tiny", overrides, {"training.seed": 5})
    assert (config.training.steps, config.training.seed) == (300, 5)


def test_an_override_reaches_into_an_absent_section():
    config = load_config(
        "idefics-tiny",
        ["faults.bad_documents.first_sample=16", "faults.bad_documents.samples=8"],
    )
    assert config.faults["bad_documents"].first_sample == 16
    assert config.faults["bad_documents"].kind == "random_tokens"


@pytest.mark.parametrize(
    ("override", "field", "allowed"),
    [
        ("model.heads=7", "model.heads", "divides model.hidden_size"),
        ("model.heads=0", "model.heads", "at least 1"),
        ("model.hedas=4", "model.hedas", "no field has this name; allowed: heads"),
        ("optimizer.lr=4", "optimizer.lr", "allowed: learning_rate, betas, eps"),
        ("data.sources.web={weight: 1, knid: x}", "data.sources.web.knid", "allowed: kind"),
        ("modelx={}", "modelx", "allowed: model"),
        ("faults.nan={}", "faults.nan", "nan_gradient"),
        ("model.layers=x", "model.layers", "integer"),
        ("model.cross_attention_every=4", "model.cross_attention_every", "divisor"),
        ("model.vision.image_size=18", "model.vision.image_size", "multiple"),
        ("model.gate_initializer=halves", "model.gate_initializer", "zeros"),
        ("model.dropout=.nan", "model.dropout", "a finite number"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate", "finite number"),
        ("optimizer.betas=[0.9]", "optimizer.betas.1", "required"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1", "below 1"),
        ("optimizer.warmup_steps=500", "optimizer.warmup_steps", "fewer than training.steps"),
        ("optimizer.schedule=quick", "optimizer.schedule", "cosine"),
        ("data.sources={}", "data.sources", "at least one source"),
        ("data.sources.web_documents=0", "data.sources.web_documents.weight", "at least 1"),
        ("data.sequence_length=4096", "data.sequence_length", "model.max_positions"),
        ("data.epoch_samples=12", "data.epoch_samples", "multiple"),
        ("training.seed=-1", "training.seed", "at least 0"),
        ("monitor.collector=localhost", "monitor.collector", "http://"),
        ("monitor.mode=yolo", "monitor.mode", "observe"),
        ("faults.lr_restart.factor=3", "faults.lr_restart.step", "required"),
        ("faults.lr_restart={step: 1, factor: 0}", "faults.lr_restart.factor", "above 0"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_is_allowed(override, field, allowed):
    with pytest.raises(ConfigurationError) as caught:
        load_config("idefics-tiny", [override])
    assert caught.value.message.startswith(f"{field}: ")
    assert allowed in caught.value.message


def test_several_wrong_types_are_reported_at_once():
    with pytest.raises(ConfigurationError) as caught:
        load_config("idefics-tiny", ["model.layers=x", "training.seed=y"])
    assert "model.layers" in caught.value.message
    assert "training.seed" in caught.value.message


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", "training.steps=[", "training.x.y=1"])
def test_an_override_that_is_none_is_refused(override):
    with pytest.raises(ConfigurationError):
        load_config("idefics-tiny", [override])


def test_an_override_into_a_value_is_refused():
    with pytest.raises(ConfigurationError, match="'steps' is a value, not a section"):
        load_config("idefics-tiny", ["training.steps.x=1"])


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(ConfigurationError, match="idefics-tiny"):
        load_config("idefics-huge")


def test_wrong_values_and_wrong_types_of_all_sections_are_reported_at_once():
    overrides = ["model.heads=7", "optimizer.learning_rate=-1", "training.seed=x", "data.none=1"]
    with pytest.raises(ConfigurationError) as caught:
        load_config("idefics-tiny", overrides)
    fields = [line.split(":")[0] for line in caught.value.message.splitlines()]
    assert sorted(fields) == [
        "data.none",
        "model.heads",
        "optimizer.learning_rate",
        "training.seed",
    ]


def test_invalid_fields_and_fields_that_disagree_are_reported_together():
    overrides = [
        "model.layers=x",
        "model.heads=7",
        "model.vision.patch_size=0",
        "model.vision.heads=7",
        "data.filters={min_words: 5, max_words: 2, char_ngram: 0}",
        "data.sequence_length=4096",
        "optimizer.warmup_steps=500",
    ]
    with pytest.raises(ConfigurationError) as caught:
        load_config("idefics-tiny", overrides)
    fields = [line.split(":")[0] for line in caught.value.message.splitlines()]
    assert sorted(fields) == [
        "data.filters.char_ngram",
        "data.filters.min_words",
        "data.sequence_length",
        "model.heads",
        "model.layers",
        "model.vision.heads",
        "model.vision.patch_size",
        "optimizer.warmup_steps",
    ]


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["training.precision=x", "model.pretrained={vision: v, dtype: bfloat16}"], "precision"),
        (["training.accumulate=0", "data.epoch_samples=4"], "accumulate"),
        (["model=3"], "model"),
    ],
)
def test_fields_are_not_compared_with_invalid_ones(overrides, field):
    with pytest.raises(ConfigurationError) as caught:
        load_config("idefics-tiny", overrides)
    assert re.fullmatch(rf"[a-z.]*{field}: .+", caught.value.message)


def test_sections_made_in_code_are_checked_as_well():
    with pytest.raises(ValidationError, match=r"at least rows \(3\)"):
        PackingConfig(documents=2, rows=3)


def test_a_check_that_stumbles_over_a_refused_value_does_not_hide_the_refusal():
    with pytest.raises(ConfigurationError, match=r"model\.vision\.patch_size: 0 cannot be used"):
        load_config("idefics-tiny", ["model.vision.patch_size=0"])


def test_what_must_agree_between_sections_is_reported_with_its_place():
    with pytest.raises(ConfigurationError) as caught:
        load_config("idefics-tiny", ["training.steps=10"])
    message = caught.value.message
    assert re.match(r"idefics-tiny\.yaml:\d+: optimizer\.warmup_steps: 60 cannot", message)


def test_samples_of_a_step_count_all_processes():
    fields = ["training.devices=2", "training.nodes=2", "data.epoch_samples=48"]
    with pytest.raises(ConfigurationError, match=r"samples of one step \(32\)"):
        load_config("idefics-tiny", fields)


def test_neither_or_both_of_preset_and_recipe_are_refused():
    for names in ({}, {"preset": "idefics-tiny", "recipe": "x.yaml"}):
        with pytest.raises(ConfigurationError, match="either a recipe or a preset"):
            load_config(**names)

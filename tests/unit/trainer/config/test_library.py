"""Recipes: packaged, and in files of the user."""

from __future__ import annotations

import pytest

from stabilizer.errors import ConfigurationError
from stabilizer.rules.loader import load_rules
from trainer.config import (
    config_to_yaml,
    describe_presets,
    describe_recipes,
    find_policy,
    load_config,
    recipe_names,
)


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write_file


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_is_a_whole_configuration(name):
    assert load_config(recipe=name).training.steps > 0


def test_a_policy_is_found_by_the_name_of_its_preset_or_as_a_file(write):
    assert load_rules(find_policy("idefics-tiny").read_text()).policy.ladder
    path = write("rules: []")
    assert str(find_policy(path)) == path
    with pytest.raises(ConfigurationError, match=r"monitor\.policy: none .*idefics-tiny"):
        find_policy("none")


def test_every_preset_and_recipe_says_what_it_is():
    for text in [*describe_presets().values(), *describe_recipes().values()]:
        assert 20 < len(text) < 200
        assert text.endswith((".", ":"))


def test_a_recipe_lays_its_sections_over_the_preset_it_names(write):
    path = write("preset: idefics-tiny\noptimizer: {learning_rate: 3.0e-4}\n")
    config = load_config(recipe=path)
    expected = load_config("idefics-tiny", ["optimizer.learning_rate=3e-4"])
    assert config == expected


def test_a_recipe_without_a_preset_is_the_whole_configuration(write):
    config = load_config("idefics-tiny", ["training.seed=5"])
    assert load_config(recipe=write(config_to_yaml(config))) == config


def test_overrides_win_over_the_recipe(write):
    path = write("preset: idefics-tiny\ntraining: {seed: 1, steps: 90}\n")
    config = load_config(overrides=["training.seed=2"], recipe=path)
    assert (config.training.seed, config.training.steps) == (2, 90)


def test_sources_of_a_recipe_stand_for_themselves(write):
    path = write("preset: idefics-tiny\ndata:\n  sources: {image_text_pairs: 1}\n")
    assert list(load_config(recipe=path).data.sources) == ["image_text_pairs"]


def test_every_mistake_of_a_file_is_reported_with_its_line(write):
    path = write(
        "preset: idefics-tiny\n"
        "model:\n"
        "  heads: 7\n"
        "optimizer:\n"
        "  learning_rate: fast\n"
        "faults:\n"
        "  nan_gradient: {module: lm_head}\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        load_config(recipe=path)
    starts = [line.split(" ")[:2] for line in caught.value.message.splitlines()]
    assert sorted(starts) == [
        [f"{path}:3:", "model.heads:"],
        [f"{path}:5:", "optimizer.learning_rate:"],
        [f"{path}:7:", "faults.nan_gradient.step:"],
    ]


def test_what_the_command_line_replaces_is_not_blamed_on_the_file(write):
    path = write("preset: idefics-tiny\nmodel:\n  heads: 4\n")
    with pytest.raises(ConfigurationError) as caught:
        load_config(overrides=["model.heads=7"], recipe=path)
    assert caught.value.message.startswith("model.heads: 7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.yaml:1: the file is empty"),
        ("- a\n- b\n", "mine.yaml:1: allowed: a mapping of sections"),
        ("training: [", "mine.yaml:1: .*not YAML"),
        ("training: {seed: 1}\ntraining: {seed: 2}\n", "mine.yaml:2: duplicate key"),
        ("preset: huge\n", "mine.yaml:1: preset: 'huge' cannot be used; allowed: .*idefics-tiny"),
        ("training: {steps: 5}\n", "model: Field required"),
    ],
    ids=["empty", "list", "broken", "twice", "preset", "partial"],
)
def test_a_file_that_is_no_recipe_is_refused(write, text, message):
    with pytest.raises(ConfigurationError, match=message):
        load_config(recipe=write(text))


def test_an_absent_recipe_names_those_there_are(tmp_path):
    with pytest.raises(ConfigurationError, match=r"--config: .*none.* cannot be read"):
        load_config(recipe=str(tmp_path / "none.yaml"))

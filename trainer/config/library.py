"""Presets and recipes: packaged, or recipes in files of the user.

A preset is a complete configuration for one size of the model. A recipe is a complete configuration
as well, or names a `preset` and lists the differences. Its leading comment is its description.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

from stabilizer.errors import ConfigurationError
from trainer.config.drafts import ConfigDraft

_SUFFIX: Final = ".yaml"
_POLICY_SUFFIX: Final = ".policy.yaml"
_PRESETS: Final = "trainer.presets"
_RECIPES: Final = "trainer.recipes"


def preset_names() -> list[str]:
    """Return the names of the packaged presets, sorted."""
    return _names(_PRESETS)


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes, sorted."""
    return _names(_RECIPES)


def policy_names() -> list[str]:
    """Return the presets that come with rules and a policy, sorted."""
    names = (entry.name for entry in resources.files(_PRESETS).iterdir())
    return sorted(
        name.removesuffix(_POLICY_SUFFIX) for name in names if name.endswith(_POLICY_SUFFIX)
    )


def find_policy(policy: str) -> Path:
    """Return the rule file of a preset, or the given path.

    Raises:
        ConfigurationError: There is no such file.
    """
    if policy in policy_names():
        return Path(str(resources.files(_PRESETS) / f"{policy}{_POLICY_SUFFIX}"))
    if not Path(policy).is_file():
        raise ConfigurationError(
            f"monitor.policy: {policy} does not exist; allowed: a rule file, or that of a preset: "
            f"{', '.join(policy_names())}"
        )
    return Path(policy)


def describe_presets() -> dict[str, str]:
    """Return the first sentence about each preset, by name."""
    return {name: _first_sentence(_text(_PRESETS, name)) for name in preset_names()}


def describe_recipes() -> dict[str, str]:
    """Return the first sentence about each recipe, by name."""
    return {name: _first_sentence(_text(_RECIPES, name)) for name in recipe_names()}


def read_preset(name: str) -> ConfigDraft:
    """Read a packaged preset.

    Raises:
        ConfigurationError: There is no preset of this name.
    """
    draft = ConfigDraft()
    _lay_preset(draft, name, "preset")
    return draft


def read_recipe(recipe: str) -> ConfigDraft:
    """Read a recipe, packaged or in a file, over the preset that it names.

    Raises:
        ConfigurationError: There is no such recipe, or it is not YAML.
    """
    if recipe in recipe_names():
        text, file = _text(_RECIPES, recipe), f"{recipe}{_SUFFIX}"
    else:
        text, file = _read_file(recipe), recipe
    written = ConfigDraft()
    written.merge_file(text, file)
    preset, place = written.take("preset")
    if preset is None:
        return written
    draft = ConfigDraft()
    _lay_preset(draft, str(preset), f"{place}: preset")
    draft.merge_file(text, file)
    draft.take("preset")
    return draft


def _lay_preset(draft: ConfigDraft, name: str, field: str) -> None:
    names = preset_names()
    if name not in names:
        allowed = ", ".join(names)
        raise ConfigurationError(f"{field}: {name!r} cannot be used; allowed: {allowed}")
    draft.merge_file(_text(_PRESETS, name), f"{name}{_SUFFIX}")


def _read_file(recipe: str) -> str:
    path = Path(recipe)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        allowed = ", ".join(recipe_names())
        raise ConfigurationError(
            f"--config: {recipe!r} cannot be read: {error}; allowed: a YAML file, or one of the "
            f"packaged recipes {allowed}"
        ) from error


def _names(package: str) -> list[str]:
    names = (entry.name for entry in resources.files(package).iterdir())
    return sorted(
        name.removesuffix(_SUFFIX)
        for name in names
        if name.endswith(_SUFFIX) and not name.endswith(_POLICY_SUFFIX)
    )


def _text(package: str, name: str) -> str:
    return (resources.files(package) / f"{name}{_SUFFIX}").read_text("utf-8")


def _first_sentence(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    sentence, stop, _ = " ".join(lines).partition(". ")
    return sentence + stop.strip()

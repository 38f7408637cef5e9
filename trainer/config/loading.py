"""Load a checked `RunConfig` from presets, recipes and overrides; write it as YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from stabilizer.errors import ConfigurationError
from trainer.config.describing import fields_of
from trainer.config.drafts import ConfigDraft, to_yaml
from trainer.config.library import read_preset, read_recipe
from trainer.config.run import RunConfig
from trainer.faults import FAULTS

_WORDS: Final = {
    "Input should be greater than or equal to": "allowed: at least",
    "Input should be greater than": "allowed: above",
    "Input should be less than or equal to": "allowed: at most",
    "Input should be less than": "allowed: below",
    "Input should be": "allowed:",
}
"""Replacements in the messages of pydantic."""


def load_config(
    preset: str | None = None,
    overrides: Sequence[str] = (),
    fields: Mapping[str, Any] | None = None,
    *,
    recipe: str | None = None,
) -> RunConfig:
    """Build the configuration of a run.

    Args:
        preset: Name of a packaged preset.
        overrides: `a.b=value`, the value in YAML; later ones win.
        fields: Values by dotted name, not parsed; they override `overrides`.
        recipe: Name of a packaged recipe, or a file; instead of a preset.

    Raises:
        ConfigurationError: There is no such preset or recipe, or fields are invalid; lists all
            errors, with file and line for values from a file.
    """
    if (preset is None) == (recipe is None):
        raise ConfigurationError("--config: allowed: either a recipe or a preset")
    draft = read_preset(preset) if preset is not None else read_recipe(recipe or "")
    for override in overrides:
        draft.merge_override(override)
    for name, value in (fields or {}).items():
        draft.set(name, value)
    return check_draft(draft)


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Build a configuration from a nested mapping.

    Raises:
        ConfigurationError: Fields are invalid; lists all errors.
    """
    return check_draft(ConfigDraft(dict(values)))


def check_draft(draft: ConfigDraft) -> RunConfig:
    """Build a configuration from a draft.

    Raises:
        ConfigurationError: Fields are invalid; lists all errors, one per line, by section.
    """
    try:
        return TypeAdapter(RunConfig).validate_python(draft.values)
    except ValidationError as error:
        mistakes = [_explain(item) for item in error.errors(include_url=False)]
        lines = dict.fromkeys(_with_place(mistake, draft) for mistake in mistakes)
        raise ConfigurationError("\n".join(lines)) from error


def config_to_yaml(config: RunConfig) -> str:
    """Return a configuration as YAML that `parse_config` reads; faults that are off are null."""
    values = asdict(config)
    values["faults"] = dict.fromkeys(kind.name for kind in FAULTS) | values["faults"]
    return to_yaml(_plain(values))


def _explain(item: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":  # the input is the whole section
        return f"{name}: {item['msg']}"
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        section, _, last = name.rpartition(".")
        known = fields_of(section)
        allowed = ", ".join(get_close_matches(last, known, cutoff=0.5) or known)
        return (
            f"{name}: {item['input']!r} cannot be used, no field has this name; allowed: {allowed}"
        )
    message = item["msg"]
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return f"{name}: {item['input']!r} cannot be used; {message}"


def _with_place(mistake: str, draft: ConfigDraft) -> str:
    place = draft.place(mistake.partition(":")[0])
    return f"{place}: {mistake}" if place else mistake


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value

"""From a preset, recipe or file and `--set` overrides to a checked `RunConfig`, back to YAML."""

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
"""Pydantic's phrases, and how this program says what is allowed."""


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
        fields: Values by dotted name, taken as they are; they win over `overrides`.
        recipe: Name of a packaged recipe, or a file; instead of a preset.

    Raises:
        ConfigurationError: There is no such preset, recipe or field, or a value cannot be used;
            all mistakes at once, with file and line where they stand in a file.
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
    """Check a nested mapping and make it a configuration.

    Raises:
        ConfigurationError: With every mistake at once.
    """
    return check_draft(ConfigDraft(dict(values)))


def check_draft(draft: ConfigDraft) -> RunConfig:
    """Check a draft and make it a configuration.

    Raises:
        ConfigurationError: With every mistake at once, each on a line, in the order of the fields.
    """
    try:
        return TypeAdapter(RunConfig).validate_python(draft.values)
    except ValidationError as error:
        mistakes = [_explain(item) for item in error.errors(include_url=False)]
        lines = dict.fromkeys(_with_place(mistake, draft) for mistake in mistakes)
        raise ConfigurationError("\n".join(lines)) from error


def config_to_yaml(config: RunConfig) -> str:
    """Write a configuration as `parse_config` reads it back; faults that are off are null."""
    values = asdict(config)
    values["faults"] = dict.fromkeys(kind.name for kind in FAULTS) | values["faults"]
    return to_yaml(_plain(values))


def _explain(item: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":  # its input is the whole section
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

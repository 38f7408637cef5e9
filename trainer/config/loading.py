"""From a preset or file and `--set` overrides to a checked `RunConfig`, and back to YAML."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stabilizer.errors import ConfigurationError
from trainer.config.run import RunConfig

_SUFFIX = ".yaml"
_POLICY_SUFFIX = ".policy.yaml"


def preset_names() -> list[str]:
    """Return the names of the packaged presets, sorted."""
    names = (entry.name for entry in resources.files("trainer.presets").iterdir())
    return sorted(
        name.removesuffix(_SUFFIX)
        for name in names
        if name.endswith(_SUFFIX) and not name.endswith(_POLICY_SUFFIX)
    )


def load_config(
    preset: str, overrides: Sequence[str] = (), fields: Mapping[str, Any] | None = None
) -> RunConfig:
    """Build the configuration of a run.

    Args:
        preset: Name of a packaged preset.
        overrides: `a.b=value`, the value in YAML; later ones win.
        fields: Values by dotted name, taken as they are; they win over `overrides`.

    Raises:
        ConfigurationError: There is no such preset or field, or a value cannot be used.
    """
    if preset not in preset_names():
        allowed = ", ".join(preset_names())
        raise ConfigurationError(f"preset: {preset!r} cannot be used; allowed: {allowed}")
    text = (resources.files("trainer.presets") / f"{preset}{_SUFFIX}").read_text("utf-8")
    values: dict[str, Any] = _yaml().load(text)
    for override in overrides:
        _set(values, *_parse_override(override))
    for name, value in (fields or {}).items():
        _set(values, name, value)
    return parse_config(values)


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Check a nested mapping and make it a configuration.

    Raises:
        ConfigurationError: With every field of a wrong type at once, or the first wrong value.
    """
    try:
        return TypeAdapter(RunConfig).validate_python(values)
    except ValidationError as error:
        lines = (
            f"{'.'.join(str(part) for part in item['loc'])}: {item['input']!r} cannot be used; "
            f"{item['msg']}"
            for item in error.errors(include_url=False)
        )
        raise ConfigurationError("\n".join(lines)) from error


def config_to_yaml(config: RunConfig) -> str:
    """Write a configuration so that `parse_config` reads the same one back."""
    stream = io.StringIO()
    _yaml().dump(_plain(asdict(config)), stream)
    return stream.getvalue()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _parse_override(override: str) -> tuple[str, Any]:
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")):
        raise ConfigurationError(f"--set: {override!r} cannot be used; allowed: a.b=value")
    try:
        return name, _yaml().load(text)
    except YAMLError as error:
        raise ConfigurationError(f"{name}: {text!r} is not a YAML value") from error


def _set(values: dict[str, Any], name: str, value: object) -> None:
    *path, last = name.split(".")
    section: Any = values
    for part in path:
        if section.get(part) is None:  # an absent section, for example faults.lr_restart
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise ConfigurationError(f"{name}: {part!r} is a value, not a section")
    section[last] = value


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # typed as None
    return yaml

"""Configuration before it is checked: nested values and where each was set."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stabilizer.errors import ConfigurationError
from stabilizer.yaml_lines import parse_yaml

Path: TypeAlias = tuple[str, ...]

_REPLACED_WHOLE: Final = frozenset({("data", "sources")})
"""Mappings with names that the user chooses; a file replaces them as a whole."""


@dataclass(slots=True)
class ConfigDraft:
    """Values of a configuration, merged from files and overrides; later ones win."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)
    """`file:line` of fields from a file; empty for those from the command line."""

    def merge_file(self, text: str, file: str) -> None:
        """Merge the sections of a YAML file into the values.

        Raises:
            ConfigurationError: It is not YAML or not a mapping; lists all errors with their lines.
        """
        if not text.strip():
            raise ConfigurationError(f"{file}:1: the file is empty; allowed: a mapping of sections")
        source = parse_yaml(text)
        if source.mistakes:
            lines = [f"{file}:{line}: {message}" for line, _, message in source.mistakes]
            raise ConfigurationError("\n".join(lines))
        if not isinstance(source.data, dict):
            raise ConfigurationError(f"{file}:1: allowed: a mapping of sections, such as training:")
        places = {tuple(map(str, path)): f"{file}:{line}" for path, line in source.lines.items()}
        self._merge(self.values, source.data, (), places)

    def merge_override(self, override: str) -> None:
        """Merge `a.b=value`, with the value in YAML.

        Raises:
            ConfigurationError: The override does not have this form.
        """
        name, equals, text = override.partition("=")
        if not equals or not all(name.split(".")):
            raise ConfigurationError(f"--set: {override!r} cannot be used; allowed: a.b=value")
        try:
            value = safe_yaml().load(text)
        except YAMLError as error:
            raise ConfigurationError(f"{name}: {text!r} is not a YAML value") from error
        self.set(name, value)

    def set(self, name: str, value: object) -> None:
        """Set one field by its dotted name.

        Raises:
            ConfigurationError: A part of the name is a value, not a section.
        """
        *path, last = name.split(".")
        section: Any = self.values
        for depth, part in enumerate(path, start=1):
            if section.get(part) is None:  # an absent section, for example faults.lr_restart
                section[part] = {}
                self.places[tuple(path[:depth])] = ""
            section = section[part]
            if not isinstance(section, dict):
                raise ConfigurationError(f"{name}: {part!r} is a value, not a section")
        section[last] = value
        self._forget_below((*path, last))
        self.places[(*path, last)] = ""

    def take(self, name: str) -> tuple[Any, str]:
        """Remove a top-level field; return its value and place."""
        place = self.places.pop((name,), "")
        return self.values.pop(name, None), place

    def place(self, dotted: str) -> str:
        """Return the place of a field, or of the section that lacks it; empty for no file."""
        path = tuple(dotted.split("."))
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return ""

    def _merge(
        self, into: dict[str, Any], new: Mapping[str, Any], above: Path, lines: Mapping[Path, str]
    ) -> None:
        for key, value in new.items():
            path = (*above, key)
            is_section = isinstance(value, dict) and isinstance(into.get(key), dict)
            if is_section and path not in _REPLACED_WHOLE:
                self._merge(into[key], value, path, lines)
                continue
            into[key] = value
            self._forget_below(path)
            self.places |= {p: place for p, place in lines.items() if p[: len(path)] == path}
            if above:
                self.places.setdefault(above, lines.get(above, ""))

    def _forget_below(self, path: Path) -> None:
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]


def safe_yaml() -> YAML:
    """Create a reader and writer of plain data that keeps the order of keys."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # typed as None
    return yaml


def to_yaml(value: object) -> str:
    """Write plain data."""
    stream = io.StringIO()
    safe_yaml().dump(value, stream)
    return stream.getvalue()

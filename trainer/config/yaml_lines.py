"""YAML text to plain data, and the line on which each of its fields stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node

from stabilizer.errors import ConfigurationError

Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class YamlFile:
    """What a file says, and where."""

    data: Any
    lines: dict[Path, int] = field(default_factory=dict)
    """By path of keys, from 1."""


def safe_yaml() -> YAML:
    """Make a reader and writer of plain data, in the order in which it is given."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # typed as None
    return yaml


def read_yaml(text: str, file: str) -> YamlFile:
    """Read a text.

    Args:
        text: YAML.
        file: Its name, for messages.

    Raises:
        ConfigurationError: It is no YAML, or has a key twice; the message names the line.
    """
    yaml = safe_yaml()
    try:
        root = yaml.compose(text)
        lines: dict[Path, int] = {}
        if root is not None:
            _index(root, (), lines)
        return YamlFile(safe_yaml().load(text), lines)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        reason = error.problem or error.context
        raise ConfigurationError(f"{file}:{line}: not YAML: {reason}") from error
    except (YAMLError, ValueError, RecursionError) as error:  # a character that YAML has not
        raise ConfigurationError(f"{file}:1: not YAML: {error}") from error


def _index(node: Node, path: Path, lines: dict[Path, int]) -> None:
    """Note the lines of keys; what stands in lists is found by the list's key."""
    if not isinstance(node, MappingNode):
        return
    for key, value in node.value:
        below = (*path, str(key.value))
        if below not in lines:  # else an alias that refers to what it stands in
            lines[below] = key.start_mark.line + 1
            _index(value, below, lines)

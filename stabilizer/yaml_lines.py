"""YAML text as plain data with the line of every field: rule files, training configurations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pydantic import JsonValue
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Path = tuple[str | int, ...]
"""Keys and list indices from the root to a field."""

MAX_NODES: Final = 50_000
"""Aliases can make a short text very large; a text with more nodes is refused."""


class YamlMistake(NamedTuple):
    """One mistake in the text."""

    line: int
    """From 1."""
    field: str
    """Dotted path; `(file)` for the text as a whole."""
    message: str


@dataclass(slots=True)
class YamlSource:
    """A parsed text."""

    data: JsonValue = None
    """None if the text is empty or cannot be parsed."""
    lines: dict[Path, int] = field(default_factory=dict)
    """Line of every key and list item, from 1."""
    mistakes: list[YamlMistake] = field(default_factory=list)

    def locate(self, location: Path) -> tuple[str, int]:
        """Return the dotted field and the line of a location, or of its nearest parent.

        Parts that the text does not have, such as the names of a union's members, are left out,
        except for the last one: it names a missing field.
        """
        found: Path = ()
        for part in location:
            if (*found, part) in self.lines:
                found = (*found, part)
        named = found
        if location and isinstance(location[-1], str) and location[-1:] != found[-1:]:
            named = (*found, location[-1])
        return ".".join(map(str, named)) or "(file)", self.lines.get(found, 1)

    def mistake(self, message: str, location: Path) -> YamlMistake:
        """Build the mistake for a location."""
        where, line = self.locate(location)
        return YamlMistake(line, where, message)


def parse_yaml(text: str) -> YamlSource:
    """Parse a text. Syntax errors and duplicate keys are in `mistakes`; nothing is raised."""
    source = YamlSource()
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True  # reported below, all of them, with their lines
    try:
        root = yaml.compose(text)
        if root is not None:
            _index(root, source)
            source.data = yaml.constructor.construct_document(root)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        message = f"not YAML: {error.problem or error.context}"
        source.mistakes.append(YamlMistake(line, "(file)", message))
    except YAMLError as error:  # a character that YAML does not allow
        line = text.count("\n", 0, getattr(error, "position", 0) or 0) + 1
        source.mistakes.append(YamlMistake(line, "(file)", f"not YAML: {error}"))
    except _Refused as refused:
        source.mistakes.append(YamlMistake(refused.line, "(file)", str(refused)))
    except RecursionError:
        source.mistakes.append(YamlMistake(1, "(file)", "not readable: nested too deeply"))
    except (ValueError, OverflowError, TypeError) as error:  # such as a date that does not exist
        source.mistakes.append(YamlMistake(1, "(file)", f"a value cannot be read: {error}"))
    return source


class _Refused(Exception):  # noqa: N818  not an error of its own: becomes a mistake
    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def _index(root: Node, source: YamlSource) -> None:
    """Record the line of every field, and every key that its mapping has twice."""
    pending: list[tuple[Node, Path, frozenset[int]]] = [(root, (), frozenset())]
    count = 0
    while pending:
        node, path, above = pending.pop()
        count += 1
        line = node.start_mark.line + 1
        if id(node) in above:
            raise _Refused("an alias refers to a node that contains it", line)
        if count > MAX_NODES:
            raise _Refused(f"the file has more than {MAX_NODES} nodes", line)
        source.lines.setdefault(path, line)
        below = above | {id(node)}
        pending.extend((child, where, below) for child, where in _children(node, path, source))


def _children(node: Node, path: Path, source: YamlSource) -> Iterator[tuple[Node, Path]]:
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            yield item, (*path, index)
        return
    if not isinstance(node, MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            raise _Refused("a key must be a string", key.start_mark.line + 1)
        name, line = str(key.value), key.start_mark.line + 1
        where = (*path, name)
        if name in seen:
            message = f"duplicate key {name!r}; first on line {seen[name]}"
            source.mistakes.append(YamlMistake(line, ".".join(map(str, where)), message))
        else:
            seen[name] = line
            source.lines[where] = line
            yield value, where

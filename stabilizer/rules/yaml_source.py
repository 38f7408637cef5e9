"""YAML text to plain data that knows on which line each of its fields stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from pydantic import JsonValue
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from stabilizer.errors import RuleDefinitionError

Path = tuple[str | int, ...]

MAX_NODES: Final = 50_000
"""Aliases can make a short text very large; more nodes than this are refused."""


@dataclass(slots=True)
class Source:
    """A parsed text: its data, the line (from 1) of every field, and keys that stand twice."""

    file: str
    data: JsonValue = None
    lines: dict[Path, int] = field(default_factory=dict)
    errors: list[RuleDefinitionError] = field(default_factory=list)

    def locate(self, location: Path) -> tuple[str, int]:
        """Find the dotted field and the line of a location, or of the nearest field that holds it.

        Parts of the location that the text does not have, such as names of alternatives, are left
        out, except for the last: it names a field that is missing.
        """
        found: Path = ()
        for part in location:
            if (*found, part) in self.lines:
                found = (*found, part)
        named = found
        if location and isinstance(location[-1], str) and location[-1:] != found[-1:]:
            named = (*found, location[-1])
        return ".".join(map(str, named)) or "(file)", self.lines.get(found, 1)

    def error(self, message: str, location: Path) -> RuleDefinitionError:
        """Build the error for a location."""
        where, line = self.locate(location)
        return RuleDefinitionError(message, file=self.file, line=line, field=where)


def parse_yaml(text: str, file: str) -> Source:
    """Parse a text; what is wrong with it stands in `errors`, and `data` is then None."""
    source = Source(file)
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True  # found below, all of them, with their lines
    try:
        source.data = _construct(yaml, text, source)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        source.errors.append(_syntax(f"not YAML: {error.problem or error.context}", file, line))
    except YAMLError as error:  # a character that YAML does not allow
        line = text.count("\n", 0, getattr(error, "position", 0) or 0) + 1
        source.errors.append(_syntax(f"not YAML: {error}", file, line))
    except _Refused as error:
        source.errors.append(_syntax(error.message, file, error.line))
    except RecursionError:
        source.errors.append(_syntax("not readable: brackets within brackets, too deep", file, 1))
    except (ValueError, OverflowError, TypeError) as error:  # such as a date that does not exist
        source.errors.append(_syntax(f"a value cannot be read: {error}", file, 1))
    return source


def _construct(yaml: YAML, text: str, source: Source) -> JsonValue:
    root = yaml.compose(text)
    if root is None:
        raise _Refused("the file is empty; allowed: a mapping with rules and policy", 1)
    _index(root, source)
    data: JsonValue = yaml.constructor.construct_document(root)
    return data


class _Refused(Exception):  # noqa: N818  not an error of its own: becomes one
    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


def _syntax(message: str, file: str, line: int) -> RuleDefinitionError:
    return RuleDefinitionError(message, file=file, line=line, field="(file)")


def _index(root: Node, source: Source) -> None:
    """Note the line of every field, and every key that stands twice in its mapping."""
    pending: list[tuple[Node, Path, frozenset[int]]] = [(root, (), frozenset())]
    count = 0
    while pending:
        node, path, above = pending.pop()
        count += 1
        line = node.start_mark.line + 1
        if id(node) in above:
            raise _Refused("an alias refers to what it stands in", line)
        if count > MAX_NODES:
            raise _Refused(f"the file has more than {MAX_NODES} nodes", line)
        source.lines.setdefault(path, line)
        below = above | {id(node)}
        pending.extend((child, where, below) for child, where in _children(node, path, source))


def _children(node: Node, path: Path, source: Source) -> Iterator[tuple[Node, Path]]:
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            yield item, (*path, index)
        return
    if not isinstance(node, MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            raise _Refused("a key must be a text", key.start_mark.line + 1)
        name, line = str(key.value), key.start_mark.line + 1
        where = (*path, name)
        if name in seen:
            message = f"{name!r} stands here and on line {seen[name]}; allowed: once"
            dotted = ".".join(map(str, where))
            source.errors.append(
                RuleDefinitionError(message, file=source.file, line=line, field=dotted)
            )
        else:
            seen[name] = line
            source.lines[where] = line
            yield value, where

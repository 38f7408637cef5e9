"""The fields of a configuration as a person asks for them: name, type, default, and what they do.

What they do is what stands under each field in the source, so that it is written once.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from stabilizer.errors import ConfigurationError
from trainer.config.run import RunConfig

_ANY_NAME: Final = "NAME"
"""Stands for a name of a person's own, such as that of a source."""
_PLAIN: Final = {str: "text", int: "whole number", float: "number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class FieldDescription:
    """One field, or a section of them."""

    name: str
    """Dotted, as in `--set`; `NAME` for a name of one's own, `[]` for each entry of a list."""
    kind: str
    """What may be given, in words; empty for a section."""
    default: str | None
    """Value where nothing is given, as in YAML; None where something must be given."""
    about: str
    """What it does, with its unit."""


def describe_fields(name: str = "") -> list[FieldDescription]:
    """Return a field, or a section with all fields below it; everything by default.

    Raises:
        ConfigurationError: There is no such field.
    """
    found = [each for each in _all() if not name or _is_at_or_below(each.name, name)]
    if not found:
        section = name.rpartition(".")[0]
        allowed = ", ".join(fields_of(section) or fields_of(""))
        raise ConfigurationError(f"{name}: there is no such field; allowed: {allowed}")
    return found


def fields_of(section: str) -> list[str]:
    """Return the names of the fields of a section; empty if there is none of this dotted name."""
    depth = section.count(".") + 1 if section else 0
    return [
        each.name.split(".")[-1]
        for each in _all()
        if each.name.count(".") == depth and (not section or _is_at_or_below(each.name, section))
    ]


def _is_at_or_below(name: str, wanted: str) -> bool:
    """Compare dotted names; `NAME` is like any name."""
    parts, asked = name.replace("[]", "").split("."), wanted.replace("[]", "").split(".")
    pairs = zip(parts, asked, strict=False)
    return len(parts) >= len(asked) and all(part in (ask, _ANY_NAME) for part, ask in pairs)


@cache
def _all() -> tuple[FieldDescription, ...]:
    return tuple(_describe(RunConfig, ""))


def _describe(section: type, above: str) -> Iterator[FieldDescription]:
    hints = get_type_hints(section, include_extras=True)
    texts = _texts(section)
    for each in fields(section):
        name = f"{above}{each.name}"
        inner, suffix, kind = _look_into(hints[each.name])
        yield FieldDescription(name, kind, _default(each), texts.get(each.name, ""))
        if inner is not None:
            yield from _describe(inner, f"{name}{suffix}.")


def _look_into(hint: Any) -> tuple[type | None, str, str]:  # noqa: ANN401  any type
    """Return the section that a type holds, if any; how its fields are named; the type in words."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if is_dataclass(hint):
        return (hint if isinstance(hint, type) else None), "", ""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return None, "", " | ".join(str(value) for value in arguments)
    if origin in (Union, UnionType):
        inner, suffix, kind = _look_into(next(part for part in arguments if part is not NoneType))
        return inner, suffix, f"{kind or 'a section'} | null"
    if origin is tuple:
        inner, _, kind = _look_into(arguments[0])
        return inner, "[]", f"list of {kind or 'sections'}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        inner, _, kind = _look_into(arguments[1])
        return inner, f".{_ANY_NAME}", f"mapping to {kind or 'sections'}"
    return None, "", _PLAIN.get(hint, str(hint))


def _default(each: Field[Any]) -> str | None:
    value = each.default
    if each.default_factory is not MISSING:
        value = each.default_factory()
    if value is MISSING:
        return None
    if is_dataclass(value):
        return ""
    return _in_yaml(value)


def _in_yaml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_in_yaml, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _texts(section: type) -> dict[str, str]:
    """Return the string under each field in the source of a class."""
    (found,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    body = found.body if isinstance(found, ast.ClassDef) else []
    texts: dict[str, str] = {}
    for place, statement in enumerate(body[1:], start=1):
        before = body[place - 1]
        if not isinstance(before, ast.AnnAssign) or not isinstance(before.target, ast.Name):
            continue
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            texts[before.target.id] = inspect.cleandoc(str(statement.value.value))
    return texts

"""Fields of a configuration as shown to a user: name, type, default, and description.

All of it comes from the sections themselves: pydantic keeps the docstring of every field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from stabilizer.errors import ConfigurationError
from trainer.config.run import RunConfig
from trainer.faults import faults_section

_ANY_NAME: Final = "NAME"
"""Placeholder for a name that the user chooses, such as that of a source."""
_FAULTS: Final = "faults"
_PLAIN: Final = {str: "text", int: "whole number", float: "number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class FieldDescription:
    """One field, or a section of them."""

    name: str
    """Dotted, as in `--set`; `NAME` for a name that the user chooses, `[]` for list entries."""
    kind: str
    """Type or allowed values; empty for a section."""
    default: str | None
    """Default as in YAML; None for a required field."""
    about: str
    """Meaning, with the unit."""


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
    """Return the names of the fields of a section; empty if there is no such section."""
    depth = section.count(".") + 1 if section else 0
    return [
        each.name.split(".")[-1]
        for each in _all()
        if each.name.count(".") == depth and (not section or _is_at_or_below(each.name, section))
    ]


def _is_at_or_below(name: str, wanted: str) -> bool:
    """Compare dotted names; `NAME` matches any name."""
    parts, asked = name.replace("[]", "").split("."), wanted.replace("[]", "").split(".")
    pairs = zip(parts, asked, strict=False)
    return len(parts) >= len(asked) and all(part in (ask, _ANY_NAME) for part, ask in pairs)


@cache
def _all() -> tuple[FieldDescription, ...]:
    return tuple(_describe(RunConfig, ""))


def _describe(section: Any, above: str) -> Iterator[FieldDescription]:  # noqa: ANN401  a dataclass of pydantic's or a model
    fields: dict[str, FieldInfo] = section.__pydantic_fields__
    for field, info in fields.items():
        name = f"{above}{field}"
        inner, suffix, kind = _look_into(info.annotation)
        if name == _FAULTS:
            inner, suffix, kind = faults_section, "", ""
        yield FieldDescription(name, kind, _default(info), info.description or "")
        if inner is not None:
            yield from _describe(inner, f"{name}{suffix}.")


def _look_into(hint: Any) -> tuple[type | None, str, str]:  # noqa: ANN401  any type
    """Return the section in a type, if any, the suffix of its name, and the type as text."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return (hint if isinstance(hint, type) else None), "", ""
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


def _default(info: FieldInfo) -> str | None:
    if info.is_required():
        return None
    value = info.get_default(call_default_factory=True, validated_data={})
    return "" if is_dataclass(value) else _in_yaml(value)


def _in_yaml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_in_yaml, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))

"""Base of all sections of the configuration: pydantic's settings, number types, and agreements.

Each field is checked by its type. An agreement is a check over several fields, possibly of other
sections. It is checked as soon as these fields are valid, whatever else is invalid, so that a user
sees all errors at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final, Self, TypeAlias, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs, InitErrorDetails, PydanticCustomError

SECTION: Final = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
"""Of every section: unknown fields, NaN and infinity are refused; field docstrings describe."""

Count: TypeAlias = Annotated[int, Field(ge=1)]
Natural: TypeAlias = Annotated[int, Field(ge=0)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]

Refusals: TypeAlias = Iterator[tuple[str, object, str]]
"""Dotted field within the section, its value, and what is allowed, in words."""
Agreement = TypeVar("Agreement", bound=Callable[[Any], Refusals])


def refuse(allowed: str) -> PydanticCustomError:
    """Return the error for one value, with what is allowed in words."""
    return PydanticCustomError("refused", "allowed: {allowed}", {"allowed": allowed})


def agreement(check: Agreement) -> Agreement:
    """Mark a method of a section that yields a refusal for each value that does not agree.

    It must read the fields that it depends on, and be independent of all others.
    """
    check.__dict__["is_agreement"] = True
    return check


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Section:
    """A section of the configuration."""

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, given: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            section = validate(given)
        except ValidationError as error:
            part = _ValidPart(cls, given)
            raise _error(cls, [*_details(error), *_disagreements(cls, part)]) from error
        if wrong := _disagreements(cls, section):
            raise _error(cls, wrong)
        return section


class _ValidPart:
    """The valid fields of a section, and its properties; any other attribute is missing."""

    def __init__(self, kind: type[Section], given: object) -> None:
        self._kind = kind
        values = given.kwargs if isinstance(given, ArgsKwargs) else given
        if not isinstance(values, Mapping):
            return
        fields: dict[str, FieldInfo] = kind.__pydantic_fields__  # type: ignore[attr-defined]  # pydantic
        for name, info in fields.items():
            with suppress(KeyError, ValidationError):
                self.__dict__[name] = _valid_value(info, name, values)

    def __getattr__(self, name: str) -> object:
        found = vars(self._kind).get(name)
        if isinstance(found, property):
            return found.__get__(self)
        raise AttributeError(name)


def _valid_value(info: FieldInfo, name: str, values: Mapping[str, object]) -> object:
    """Return the value of a field; of a section, its valid part.

    Raises:
        KeyError: A required field is missing.
        ValidationError: The value is invalid.
    """
    if name not in values and not info.is_required():
        return info.get_default(call_default_factory=True, validated_data={})
    value, kind = values[name], info.annotation
    if isinstance(kind, type) and issubclass(kind, Section):
        return value if isinstance(value, kind) else _ValidPart(kind, value)
    hint: Any = Annotated[(kind, *info.metadata)] if info.metadata else kind
    return TypeAdapter(hint, config=SECTION).validate_python(value)


def _disagreements(kind: type[Section], section: Section | _ValidPart) -> list[InitErrorDetails]:
    found: list[InitErrorDetails] = []
    for check in vars(kind).values():
        if not getattr(check, "is_agreement", False):
            continue
        try:
            refusals = list(check(section))
        except AttributeError:
            if isinstance(section, Section):
                raise
            continue  # a field that it reads is invalid
        found += [
            InitErrorDetails(type=refuse(allowed), loc=tuple(field.split(".")), input=value)
            for field, value, allowed in refusals
        ]
    return found


def _details(error: ValidationError) -> list[InitErrorDetails]:
    """Return the errors in a form that can be raised again, together with others."""
    return [
        InitErrorDetails(
            type=PydanticCustomError(item["type"], item["msg"]),
            loc=item["loc"],
            input=item["input"],
        )
        for item in error.errors(include_url=False)
    ]


def _error(kind: type[Section], details: list[InitErrorDetails]) -> ValidationError:
    return ValidationError.from_exception_data(kind.__name__, details)

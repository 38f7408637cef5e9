"""What every section of the configuration shares: pydantic's settings and common kinds of numbers.

A section checks each field by its type. Values that must agree are checked in `__post_init__`, once
every field of the section can be used by itself.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from pydantic import ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

SECTION: Final = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
"""Of every section: unknown fields, NaN and infinity are refused; field docstrings describe."""

Count: TypeAlias = Annotated[int, Field(ge=1)]
Natural: TypeAlias = Annotated[int, Field(ge=0)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]


def refuse(allowed: str) -> PydanticCustomError:
    """Return the error for one value, with what is allowed in words."""
    return PydanticCustomError("refused", "allowed: {allowed}", {"allowed": allowed})


def require(*agreements: tuple[bool, str, object, str]) -> None:
    """Check that values agree.

    Args:
        agreements: Whether the value can be used, its field in the section, the value, and what is
            allowed in words.

    Raises:
        ValidationError: With every value that cannot be used.
    """
    wrong = [
        InitErrorDetails(type=refuse(allowed), loc=tuple(field.split(".")), input=value)
        for holds, field, value, allowed in agreements
        if not holds
    ]
    if wrong:
        raise ValidationError.from_exception_data("configuration", wrong)

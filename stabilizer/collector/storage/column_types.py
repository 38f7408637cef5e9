"""What all tables share: names of constraints, and column types alike on both databases."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator, TypeEngine

BigId = BigInteger().with_variant(Integer, "sqlite")
"""Counts upwards; SQLite counts only in columns of its INTEGER type."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment with time zone UTC, also on SQLite, which knows no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a moment without time zone; turn every other to UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the time zone back."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class JsonText(TypeDecorator[Any]):
    """JSON in a text column: PostgreSQL's own type refuses NaN, which is data here."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ANN401  SQLAlchemy
        """Write JSON; NaN and Infinity as Python's reader takes them."""
        del dialect
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ANN401  SQLAlchemy
        """Read JSON."""
        del dialect
        return None if value is None else json.loads(value)


class ExactFloat(TypeDecorator[float]):
    """A float64 as text: SQLite turns NaN into NULL, and absent is not NaN."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> str | None:
        """Write the shortest text that reads back to the same float."""
        del dialect
        return None if value is None else repr(float(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> float | None:
        """Read it."""
        del dialect
        return None if value is None else float(value)


class Words(TypeDecorator[str]):
    """Text of people and jobs. The character NUL, which PostgreSQL refuses, becomes U+FFFD."""

    impl: TypeEngine[str] | type[TypeEngine[str]] = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Replace what a database cannot hold."""
        del dialect
        return None if value is None else value.replace("\x00", "\N{REPLACEMENT CHARACTER}")


class Id(Words):
    """Random or a hash, 32 hexadecimal digits."""

    impl = String(32)
    cache_ok = True


class Table(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, TypeEngine[Any]]] = {
        int: BigInteger(),
        datetime: UtcDateTime(),
        str: Words(),
        dict[str, Any]: JsonText(),
        list[Any]: JsonText(),
        float: ExactFloat(),
    }

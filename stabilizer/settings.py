"""Settings, read from the environment once, at the start of a process."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stabilizer.errors import ConfigurationError

Settings = TypeVar("Settings", bound=BaseSettings)

MIN_TOKEN_LENGTH: Final = 16
"""Characters; `stabilizer token new` makes 43. Shorter ones can be guessed."""

DEFAULT_MAX_BODY_BYTES: Final = 64 * 2**20
"""The largest batch that an agent sends."""


def is_loopback(host: str) -> bool:
    """Return whether a host name or address can only mean this machine.

    Args:
        host: Name or address without port; IPv6 with or without brackets.
    """
    name = host.strip().rstrip(".").lower()
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, section 6.3
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class CollectorSettings(BaseSettings):
    """Settings of a collector; each field is also an environment variable `STABILIZER_...`.

    A collector that other machines can reach needs a token: settings without one are invalid.
    """

    model_config = SettingsConfigDict(
        env_prefix="STABILIZER_", frozen=True, extra="forbid", env_ignore_empty=True
    )

    database_url: Annotated[str, Field(min_length=1)] = "sqlite:///stabilizer.db"
    """SQLAlchemy URL of a SQLite file or a PostgreSQL database."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes any free port."""
    token_file: Path | None = None
    """File with one token per line, added to `tokens`; empty lines and lines with # are ignored."""
    tokens: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Accepted bearer tokens; separated by commas in the environment."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Further host names of a collector on loopback, for example behind a proxy."""
    rules_file: Path | None = None
    """Rules for runs without rules of their own; None takes the packaged file."""
    lost_after_heartbeats: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 3.0
    """A run is lost after this many of its heartbeat intervals without a report."""
    command_ttl_seconds: Annotated[float, Field(gt=0, le=7 * 86400)] = 600.0
    """Seconds until an undelivered command expires, unless the command sets its own lifetime."""
    sweep_seconds: Annotated[float, Field(gt=0, le=60)] = 1.0
    """Seconds between two sweeps for lost runs and expired commands."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=2**30)] = DEFAULT_MAX_BODY_BYTES
    """Largest body of frames, registrations and catalogs; the limit of all others is fixed."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Level of the log on standard error."""
    shutdown_seconds: Annotated[float, Field(gt=0, le=300)] = 5.0
    """Seconds that open requests may take after SIGTERM before they are cut off."""

    @field_validator("tokens", "allowed_hosts", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="before")
    @classmethod
    def _read_token_file(cls, data: object) -> object:
        if not isinstance(data, Mapping) or not data.get("token_file"):
            return data
        given = cls._split_at_commas(data.get("tokens", ()))
        if not isinstance(given, (list, tuple)):
            return data  # the field reports it
        return {**data, "tokens": (*given, *read_tokens(Path(data["token_file"])))}

    @field_validator("tokens")
    @classmethod
    def _check_tokens(cls, tokens: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, token in enumerate(tokens, start=1):
            text = token.get_secret_value()
            if len(text) < MIN_TOKEN_LENGTH or not text.isascii() or not text.isprintable():
                raise ValueError(
                    f"token {number} has {len(text)} characters; allowed: at least "
                    f"{MIN_TOKEN_LENGTH} printable ASCII characters "
                    "(`stabilizer token new` makes one)"
                )
        return tokens

    @model_validator(mode="after")
    def _require_token_beyond_loopback(self) -> CollectorSettings:
        if not self.tokens and not self.is_loopback:
            raise ValueError(
                f"host {self.host!r} can be reached from other machines, and there is no token; "
                "give a token (`stabilizer token new`, then --token-file or STABILIZER_TOKENS) "
                "or listen on 127.0.0.1"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the collector."""
        return is_loopback(self.host)


def read_tokens(path: Path) -> tuple[str, ...]:
    """Read a token file.

    Raises:
        ValueError: The file cannot be read or holds no token.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"token_file {str(path)!r} cannot be read: {error}") from error
    tokens = tuple(
        line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")
    )
    if not tokens:
        raise ValueError(f"token_file {str(path)!r} holds no token")
    return tokens


def load_collector_settings(**given: object) -> CollectorSettings:
    """Load settings: given values first, then the environment, then the defaults.

    Raises:
        ConfigurationError: A setting is invalid; the message lists all errors.
    """
    return load_settings(CollectorSettings, given)


def load_settings(kind: type[Settings], given: Mapping[str, object]) -> Settings:
    """Load settings of a class; given values precede the environment and the defaults.

    Raises:
        ConfigurationError: A setting is invalid; the message has one line per error.
    """
    try:
        return kind(**given)  # type: ignore[arg-type]  # pydantic checks each one
    except ValidationError as error:
        lines = [
            ".".join(str(part) for part in found["loc"] or ("settings",))
            + f": {found['msg'].removeprefix('Value error, ')}"
            for found in error.errors(include_url=False, include_input=False)
        ]
        raise ConfigurationError("\n".join(lines)) from error

"""Settings of the processes: read from the environment once, at the start, and then passed on."""

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
"""As much as the agent ever puts into one batch."""


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address can only mean this machine.

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
    """Surroundings of a collector; each field is also an environment variable `STABILIZER_...`.

    Beyond loopback there is no collector without a token: such settings cannot be made.
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
    """File with one token a line, added to `tokens`; empty lines and lines with # are left out."""
    tokens: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Bearer tokens that are let in; in the environment separated by commas."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Further names under which a collector on loopback is reached, behind a proxy for example."""
    rules_file: Path | None = None
    """Rules of runs that bring none of their own; None takes the packaged file."""
    lost_after_heartbeats: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 3.0
    """A run is lost after so many of its own heartbeat intervals without a sign of life."""
    command_ttl_seconds: Annotated[float, Field(gt=0, le=7 * 86400)] = 600.0
    """How long a job may take a command up, unless the command says otherwise."""
    sweep_seconds: Annotated[float, Field(gt=0, le=60)] = 1.0
    """Time between two looks for lost runs and expired commands."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=2**30)] = DEFAULT_MAX_BODY_BYTES
    """Largest body of frames, of a registration or of catalogs; other bodies stay below 1 MiB."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is logged on standard error."""
    shutdown_seconds: Annotated[float, Field(gt=0, le=300)] = 5.0
    """How long requests may take to end after SIGTERM before they are cut off."""

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
            return data  # refused by the field itself
        return {**data, "tokens": (*given, *read_tokens(Path(data["token_file"])))}

    @field_validator("tokens")
    @classmethod
    def _tokens_cannot_be_guessed(cls, tokens: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
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
    def _no_open_door(self) -> CollectorSettings:
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
    """Make settings from what was given, else from the environment, else from the defaults.

    Raises:
        ConfigurationError: Something given cannot be used; every mistake stands in the message.
    """
    return load_settings(CollectorSettings, given)


def load_settings(kind: type[Settings], given: Mapping[str, object]) -> Settings:
    """Make settings of a kind, with all mistakes told at once, a line each.

    Raises:
        ConfigurationError: Something given cannot be used.
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

"""Settings of the dashboard: read from the environment once, at the start, and then passed on."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stabilizer.settings import is_loopback, load_settings, read_tokens

PERSON_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,99}\Z")
"""What the collector's audit log takes as the name of a person."""
_DEFAULT_PERSON: Final = "dashboard"
_HOST_NAME: Final = re.compile(r"\[[0-9A-Fa-f:.]+\]\Z|[A-Za-z0-9._-]+\Z")


class DashboardSettings(BaseSettings):
    """Surroundings of a dashboard; each field is also an environment variable `DASHBOARD_...`.

    On loopback everybody who reaches it may use it, with `token` if the collector wants one. Beyond
    loopback people sign in, each with a name and a token of the collector: the dashboard holds none
    of its own, so that what a person may do there is what the collector lets that token do.
    """

    model_config = SettingsConfigDict(
        env_prefix="DASHBOARD_", frozen=True, extra="forbid", env_ignore_empty=True
    )

    collector_url: str = "http://127.0.0.1:8000"
    """Address of the collector."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8050
    """0 takes any free port."""
    token: SecretStr | None = None
    """For the collector, on loopback only."""
    token_file: Path | None = None
    """File whose first line is `token`."""
    person: Annotated[str, Field(validate_default=True)] = ""
    """Name in the audit log of those who need not sign in; empty: the name of the login."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Further names under which a dashboard on loopback is reached, behind a proxy for example."""
    session_hours: Annotated[float, Field(gt=0, le=24 * 30)] = 12.0
    """How long a person stays signed in."""
    secure_cookies: bool = False
    """Send the session's cookie over TLS only: true where a proxy in front speaks TLS."""
    timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 10.0
    """How long the collector may take for an answer."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is logged on standard error."""

    @field_validator("collector_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        if not _is_plain_address(url):
            raise ValueError(
                f"{url.rpartition('@')[2]!r} is not a valid address; allowed: http://HOST:PORT or "
                "https://HOST:PORT, with an optional path, without user, password and query"
            )
        return url.rstrip("/")

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _HOST_NAME.match(name):
                raise ValueError(
                    f"{name!r} is not a valid host name; allowed: names without scheme and port"
                )
        return names

    @field_validator("token")
    @classmethod
    def _can_be_sent(cls, token: SecretStr | None) -> SecretStr | None:
        text = None if token is None else token.get_secret_value()
        if text is not None and not (text and text.isascii() and text.isprintable()):
            raise ValueError("allowed: one or more printable ASCII characters")
        return token

    @field_validator("person")
    @classmethod
    def _is_a_name(cls, person: str) -> str:
        name = person or _login_name()
        if not PERSON_NAME.match(name):
            raise ValueError(
                f"{person!r} is not a valid name; allowed: letters, digits, space . _ @ + -"
            )
        return name

    @model_validator(mode="before")
    @classmethod
    def _read_token_file(cls, data: object) -> object:
        if not isinstance(data, Mapping) or not data.get("token_file"):
            return data
        if data.get("token"):
            raise ValueError("token and token_file are both set; allowed: one of them")
        return {**data, "token": read_tokens(Path(data["token_file"]))[0]}

    @model_validator(mode="after")
    def _nobody_borrows_a_token(self) -> DashboardSettings:
        if self.token is not None and not self.is_loopback:
            raise ValueError(
                f"host {self.host!r} is reachable from other machines, where anyone could use "
                "this token; unset it: users sign in with their own tokens"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the dashboard."""
        return is_loopback(self.host)

    @property
    def must_sign_in(self) -> bool:
        """Whether people must sign in."""
        return not self.is_loopback


def _is_plain_address(url: str) -> bool:
    try:
        parts, address = urlsplit(url), httpx.URL(url)
        port = parts.port  # refuses those that there cannot be, which httpx takes
    except (ValueError, httpx.InvalidURL):
        return False
    is_plain = not (address.userinfo or address.query or address.fragment)
    has_name = bool(address.host) and " " not in url
    return address.scheme in ("http", "https") and has_name and is_plain and port != 0


def _login_name() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a container without a user database
        return _DEFAULT_PERSON
    return name if PERSON_NAME.match(name) else _DEFAULT_PERSON


def load_dashboard_settings(**given: object) -> DashboardSettings:
    """Make settings from what was given, else from the environment, else from the defaults.

    Raises:
        ConfigurationError: Something given cannot be used; every mistake stands in the message.
    """
    return load_settings(DashboardSettings, given)

"""Settings of the dashboard, read from the environment once at start-up."""

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

USER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,99}\Z")
"""Names that the collector's audit log accepts."""
_DEFAULT_USER: Final = "dashboard"
_HOST_NAME: Final = re.compile(r"\[[0-9A-Fa-f:.]+\]\Z|[A-Za-z0-9._-]+\Z")


class DashboardSettings(BaseSettings):
    """Settings; each field is also an environment variable `DASHBOARD_...`.

    On loopback no sign-in is required; requests carry `token` if it is set. Beyond loopback users
    sign in with a name and a collector token. The dashboard then holds no token of its own, so a
    user can do what the collector permits that token.
    """

    model_config = SettingsConfigDict(
        env_prefix="DASHBOARD_", frozen=True, extra="forbid", env_ignore_empty=True
    )

    collector_url: str = "http://127.0.0.1:8000"
    """Address of the collector."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8050
    """0 picks a free port."""
    token: SecretStr | None = None
    """Collector token, on loopback only."""
    token_file: Path | None = None
    """File whose first line is `token`."""
    person: Annotated[str, Field(validate_default=True)] = ""
    """User name in the audit log where no sign-in is required; empty: the login name."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Further host names of a dashboard on loopback, for example behind a proxy."""
    session_hours: Annotated[float, Field(gt=0, le=24 * 30)] = 12.0
    """Lifetime of a session."""
    secure_cookies: bool = False
    """Send the session cookie over TLS only; set it behind a TLS proxy."""
    timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Timeout of requests to the collector."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Level of the log on standard error."""

    @field_validator("collector_url")
    @classmethod
    def _check_url(cls, url: str) -> str:
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
    def _check_hosts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _HOST_NAME.match(name):
                raise ValueError(
                    f"{name!r} is not a valid host name; allowed: names without scheme and port"
                )
        return names

    @field_validator("token")
    @classmethod
    def _check_token(cls, token: SecretStr | None) -> SecretStr | None:
        text = None if token is None else token.get_secret_value()
        if text is not None and not (text and text.isascii() and text.isprintable()):
            raise ValueError("allowed: one or more printable ASCII characters")
        return token

    @field_validator("person")
    @classmethod
    def _check_user(cls, person: str) -> str:
        name = person or _login_name()
        if not USER_NAME.match(name):
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
    def _no_token_beyond_loopback(self) -> DashboardSettings:
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
        """Whether users must sign in."""
        return not self.is_loopback


def _is_plain_address(url: str) -> bool:
    try:
        parts, address = urlsplit(url), httpx.URL(url)
        port = parts.port  # rejects invalid ports that httpx accepts
    except (ValueError, httpx.InvalidURL):
        return False
    is_plain = not (address.userinfo or address.query or address.fragment)
    has_name = bool(address.host) and " " not in url
    return address.scheme in ("http", "https") and has_name and is_plain and port != 0


def _login_name() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a container without a user database
        return _DEFAULT_USER
    return name if USER_NAME.match(name) else _DEFAULT_USER


def load_dashboard_settings(**given: object) -> DashboardSettings:
    """Load settings: arguments first, then the environment, then the defaults.

    Raises:
        ConfigurationError: Invalid settings; the message lists every mistake.
    """
    return load_settings(DashboardSettings, given)

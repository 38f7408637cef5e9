"""Where the collector is, and which proxy leads there."""

from __future__ import annotations

import base64
import ipaddress
import urllib.request
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

from stabilizer.errors import ConfigurationError

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The collector's address, taken apart."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    prefix: str = ""
    """Path in front of every request, without a slash at its end; for a collector behind one."""

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Read `http(s)://host[:port][/prefix]`.

        Raises:
            ConfigurationError: The text is not such an address, or carries a password, a query or
                a fragment.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise _unusable("an address http(s)://host[:port]") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _unusable("an address http(s)://host[:port]")
        if parts.username is not None or parts.password is not None:
            raise _unusable("an address without user and password; pass the token as `token`")
        if parts.query or parts.fragment or any(c <= " " or c > "~" for c in url):
            raise _unusable("an address of printable ASCII without query and fragment")
        if parts.path.rstrip("/").endswith("/api/v1"):
            raise _unusable("the collector's address without /api/v1, which is added")
        scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
        chosen = _DEFAULT_PORTS[scheme] if port is None else port
        return cls(scheme, parts.hostname, chosen, parts.path.rstrip("/"))

    @property
    def is_loopback(self) -> bool:
        """Whether requests stay on this machine."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy between the job and the collector."""

    host: str
    port: int
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """Its own authorization, never that of the collector."""


def find_proxy(endpoint: Endpoint) -> Proxy | None:
    """Look up the proxy that the environment names for this collector.

    Loopback never goes through a proxy, whatever the environment says.

    Raises:
        ConfigurationError: The environment names a proxy that is no HTTP proxy.
    """
    if endpoint.is_loopback or urllib.request.proxy_bypass(f"{endpoint.host}:{endpoint.port}"):
        return None
    address = urllib.request.getproxies().get(endpoint.scheme)
    if not address:
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigurationError(
            f"the environment's proxy for {endpoint.scheme} is not of the form http://host:port"
        )
    headers = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    return Proxy(parts.hostname, 80 if parts.port is None else parts.port, headers)


def _unusable(allowed: str) -> ConfigurationError:
    # The address is not repeated: it may carry a password.
    return ConfigurationError(f"url is not usable; allowed: {allowed}")

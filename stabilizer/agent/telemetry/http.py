"""HTTP exchanges with the collector: its address, one kept connection, a deadline for each.

The standard library's http.client under a deadline of our own. The timeout of a socket starts again
with every byte, so that a server which sends one byte a second holds a connection for hours; here
every wait is a slice of what is left of the whole exchange. The synchronous client libraries do not
bound a whole exchange; docs/adr/0011-agent-http.md has the figures.

Failures are `TelemetryError` with one of the codes connect_failed, connect_timeout, tls_failed,
read_timeout, connection_lost, garbage_answer, answer_too_large, redirect_refused, cancelled.
"""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import re
import select
import socket
import ssl
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol
from urllib.parse import unquote, urlsplit

from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.clock import Clock, SystemClock
from stabilizer.errors import ConfigurationError, TelemetryError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SLICE_SECONDS = 0.05
"""How soon a cancelled exchange is noticed."""
_SEND_BYTES = 64 * 1024
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}\Z")
_MAX_RETRY_AFTER_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The collector's address."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    prefix: str = ""
    """Path in front of every request, for a collector behind a proxy; no slash at its end."""

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
    """Return the proxy that the environment names for this collector; loopback never has one.

    Raises:
        ConfigurationError: The environment names a proxy that is not an HTTP proxy.
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
    # The message leaves the address out: it may contain a password.
    return ConfigurationError(f"url is not usable; allowed: {allowed}")


@dataclass(slots=True)
class Guard:
    """The deadline of one exchange, and the means to cancel it."""

    clock: Clock
    deadline: float
    """In the clock's monotonic seconds."""
    is_cancelled: Callable[[], bool]

    def next_slice(self) -> float:
        """Return the longest time to wait before asking again, in seconds.

        Raises:
            TelemetryError: The deadline has passed (`read_timeout`), or `cancelled`.
        """
        left = self.deadline - self.clock.monotonic()
        if left <= 0:
            raise TelemetryError("the collector did not answer in time", code="read_timeout")
        if self.is_cancelled():
            raise TelemetryError("the exchange was cancelled", code="cancelled")
        return min(left, _SLICE_SECONDS)


class _GuardedRaw(io.RawIOBase):
    """The bytes of a socket, read under a guard."""

    def __init__(self, sock: socket.socket, held: io.IOBase, guard: Guard) -> None:
        self._sock = sock
        self._held = held  # keeps the descriptor open after the connection has closed
        self._guard = guard

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # always a memoryview
        while True:
            self._sock.settimeout(self._guard.next_slice())
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                continue

    def close(self) -> None:
        if not self.closed:
            self._held.close()
        super().close()


class _GuardedResponse(http.client.HTTPResponse):
    """A response read under a guard."""

    def __init__(self, sock: socket.socket, guard: Guard, method: str | None) -> None:
        super().__init__(sock, method=method)
        self.fp = io.BufferedReader(_GuardedRaw(sock, self.fp.detach(), guard))


class GuardedConnection(http.client.HTTPConnection):
    """A plain connection; set `guard` before every exchange."""

    guard: Guard

    def response_class(  # type: ignore[override]  # http.client only ever calls it
        self,
        sock: socket.socket,
        debuglevel: int = 0,  # noqa: ARG002  the caller's signature
        method: str | None = None,
    ) -> http.client.HTTPResponse:
        """Build the response of the present exchange."""
        return _GuardedResponse(sock, self.guard, method)

    def send(self, data: bytes) -> None:  # type: ignore[override]  # we send bytes only
        """Send all bytes before the deadline; connect first where needed."""
        if self.sock is None:
            self.connect()
        rest = memoryview(data)
        while rest:
            self.sock.settimeout(self.guard.next_slice())
            try:
                sent = self.sock.send(rest[:_SEND_BYTES])
            except TimeoutError:
                continue
            rest = rest[sent:]


class GuardedTlsConnection(GuardedConnection, http.client.HTTPSConnection):
    """A connection over TLS."""


def never_cancelled() -> bool:
    """Cancel nothing."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One request to the collector."""

    method: str
    path: str
    """Relative to the collector's address, with its query."""
    body: bytes | None = None
    content_type: str = "application/json"
    timeout_seconds: float
    """For the whole exchange after connecting."""
    is_cancelled: Callable[[], bool] = never_cancelled
    """Called every 50 ms while waiting; True cancels the exchange."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete answer."""

    status: int
    body: bytes
    retry_after_seconds: float | None = None


class Transport(Protocol):
    """Carries requests. Used by one thread at a time."""

    def request(self, request: HttpRequest) -> HttpResponse:
        """Send one request and read its whole answer.

        Raises:
            TelemetryError: No whole answer came; the request may have been carried out.
        """
        ...

    def close(self) -> None:
        """Close the connection; a later request makes a new one."""
        ...


class HttpTransport:
    """One kept-alive connection to the collector.

    Args:
        endpoint: The collector's address.
        token: Bearer token, or None. It never appears in a message.
        settings: Timeouts and the limit for answers.
        clock: Deadlines of sockets are real time; leave the default outside special tests.

    Raises:
        ConfigurationError: The token is not fit for a header, or the proxy is unusable.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        token: str | None,
        settings: ReporterSettings,
        clock: Clock | None = None,
    ) -> None:
        check_token(token)
        self._endpoint = endpoint
        self._settings = settings
        self._clock = SystemClock() if clock is None else clock
        self._headers = {"Accept": "application/json", "User-Agent": "stabilizer-agent"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._connection: GuardedConnection | None = None
        self._proxy = find_proxy(endpoint)
        self._path_prefix = endpoint.prefix
        if self._proxy is not None and endpoint.scheme == "http":
            self._path_prefix = str(endpoint)
            self._headers.update(self._proxy.headers)

    def request(self, request: HttpRequest) -> HttpResponse:
        """Send one request; see `Transport.request`."""
        guard = self._guard(request)
        if self._connection is not None and _is_stale(self._connection):
            self.close()
        was_reused = self._connection is not None
        try:
            return self._exchange(request, guard)
        except http.client.RemoteDisconnected:
            # The server closed the kept connection while we wrote. Requests are idempotent.
            if not was_reused:
                raise _lost("the collector closed the connection without an answer") from None
        return self._retry(request, self._guard(request))

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _guard(self, request: HttpRequest) -> Guard:
        deadline = self._clock.monotonic() + request.timeout_seconds
        return Guard(self._clock, deadline, request.is_cancelled)

    def _retry(self, request: HttpRequest, guard: Guard) -> HttpResponse:
        try:
            return self._exchange(request, guard)
        except http.client.RemoteDisconnected as error:
            raise _lost("the collector closed the connection without an answer") from error

    def _exchange(self, request: HttpRequest, guard: Guard) -> HttpResponse:
        try:
            connection = self._connected(guard)
            self._send(connection, request)
            with connection.getresponse() as response:
                body = _read_body(response, self._settings.answer_bytes)
        except http.client.RemoteDisconnected:
            self.close()
            raise
        except TelemetryError:
            self.close()
            raise
        except OSError as error:
            self.close()
            if isinstance(error, BrokenPipeError | ConnectionResetError):
                raise http.client.RemoteDisconnected(str(error)) from error
            raise _lost(f"the connection broke: {error}") from error
        except (http.client.HTTPException, ValueError) as error:
            self.close()
            text = f"{type(error).__name__}: {error}"[:200]
            raise TelemetryError(f"not an HTTP answer: {text}", code="garbage_answer") from error
        if 300 <= response.status < 400:
            self.close()
            raise TelemetryError(
                f"the collector redirects (status {response.status}); give its final address",
                code="redirect_refused",
            )
        retry_after = _seconds(response.getheader("Retry-After"))
        return HttpResponse(response.status, body, retry_after)

    def _send(self, connection: GuardedConnection, request: HttpRequest) -> None:
        headers = dict(self._headers)
        if request.body is not None:
            headers["Content-Type"] = request.content_type
        path = self._path_prefix + request.path
        connection.request(request.method, path, body=request.body, headers=headers)

    def _connected(self, guard: Guard) -> GuardedConnection:
        if self._connection is not None:
            self._connection.guard = guard
            return self._connection
        connection = self._new_connection()
        connection.guard = guard
        try:
            connection.connect()
        except TimeoutError as error:
            connection.close()
            raise TelemetryError(
                f"no connection to {self._endpoint} in time", code="connect_timeout"
            ) from error
        except ssl.SSLError as error:
            connection.close()
            raise TelemetryError(
                f"no TLS connection to {self._endpoint}: {error}", code="tls_failed"
            ) from error
        except OSError as error:
            connection.close()
            raise TelemetryError(
                f"no connection to {self._endpoint}: {error}", code="connect_failed"
            ) from error
        self._connection = connection
        return connection

    def _new_connection(self) -> GuardedConnection:
        target, proxy = self._endpoint, self._proxy
        timeout = self._settings.connect_timeout_seconds
        host, port = (target.host, target.port) if proxy is None else (proxy.host, proxy.port)
        if target.scheme == "http":
            return GuardedConnection(host, port, timeout=timeout)
        context = ssl.create_default_context()
        connection = GuardedTlsConnection(host, port, timeout=timeout, context=context)
        if proxy is not None:
            connection.set_tunnel(target.host, target.port, proxy.headers)
        return connection


def _is_stale(connection: GuardedConnection) -> bool:
    """Tell whether an idle connection was closed by the server, or has unrequested bytes."""
    if connection.sock is None:
        return True
    poll = select.poll()  # select() itself cannot watch descriptors above 1023
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _read_body(response: http.client.HTTPResponse, limit: int) -> bytes:
    chunks = []
    left = limit
    while chunk := response.read(min(65536, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise TelemetryError(
                f"the answer is longer than {limit} bytes", code="answer_too_large"
            )
        chunks.append(chunk)
    if response.length:
        raise _lost(f"the answer ended {response.length} bytes too early")
    return b"".join(chunks)


def check_token(token: str | None) -> None:
    """Check that a token is fit for a header; None means no token.

    Raises:
        ConfigurationError: It is not.
    """
    if token is not None and not _TOKEN.match(token):
        # The message leaves the token out: logs are read by others.
        raise ConfigurationError("token is not usable; allowed: printable ASCII, no spaces")


def _seconds(text: str | None) -> float | None:
    """Return the seconds of a Retry-After header; its form with a date is ignored."""
    if text is None or not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return None
    return min(float(text), _MAX_RETRY_AFTER_SECONDS)


def _lost(message: str) -> TelemetryError:
    return TelemetryError(message, code="connection_lost")

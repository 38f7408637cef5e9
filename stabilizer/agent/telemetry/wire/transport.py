"""One exchange with the collector: bytes out, bytes in, under a deadline.

Failures are `TelemetryError` with one of the codes connect_failed, connect_timeout, tls_failed,
read_timeout, connection_lost, garbage_answer, answer_too_large, redirect_refused, cancelled.
"""

from __future__ import annotations

import http.client
import re
import select
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.agent.telemetry.wire.endpoint import Endpoint, find_proxy
from stabilizer.agent.telemetry.wire.guarded import Guard, GuardedConnection, GuardedTlsConnection
from stabilizer.clock import Clock, SystemClock
from stabilizer.errors import ConfigurationError, TelemetryError

_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}\Z")
_MAX_RETRY_AFTER_SECONDS = 3600.0


def never_cancelled() -> bool:
    """Break nothing off."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """What is asked of the collector."""

    method: str
    path: str
    """From the collector's address onwards, with its query."""
    body: bytes | None = None
    content_type: str = "application/json"
    timeout_seconds: float
    """For the whole exchange after connecting."""
    is_cancelled: Callable[[], bool] = never_cancelled
    """Asked often while waiting; True breaks the exchange off."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What came back, read to its end."""

    status: int
    body: bytes
    retry_after_seconds: float | None = None


class Transport(Protocol):
    """Carries requests. Used by one thread at a time."""

    def request(self, request: HttpRequest) -> HttpResponse:
        """Carry one request and read its answer to the end.

        Raises:
            TelemetryError: No whole answer came. Whether the request was carried out is unclear.
        """
        ...

    def close(self) -> None:
        """Let go of the connection; a later request makes a new one."""
        ...


class HttpTransport:
    """http.client with one kept-alive connection.

    http.client costs a third of httpx' time for such an exchange, and the job pays for it.

    Args:
        endpoint: The collector's address.
        token: Bearer token, or None. It is sent, and never shown.
        settings: Timeouts and the limit for answers.
        clock: Deadlines of sockets are real time; leave the default outside special tests.

    Raises:
        ConfigurationError: The token cannot stand in a header, or the proxy is unusable.
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
        """Carry one request; see `Transport.request`."""
        guard = self._guard(request)
        if self._connection is not None and _is_stale(self._connection):
            self.close()
        was_reused = self._connection is not None
        try:
            return self._exchange(request, guard)
        except http.client.RemoteDisconnected:
            # A kept-alive connection that the server closed while we wrote: nothing was answered.
            # Every request of ours may be carried out twice without harm.
            if not was_reused:
                raise _lost("the collector closed the connection without an answer") from None
        return self._retry(request, self._guard(request))

    def close(self) -> None:
        """Let go of the connection."""
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
    """Tell whether an idle connection has been closed, or has bytes that nobody asked for."""
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
        raise _lost(f"the answer broke off {response.length} bytes before its end")
    return b"".join(chunks)


def check_token(token: str | None) -> None:
    """Check that a token can stand in a header; None is no token.

    Raises:
        ConfigurationError: It cannot.
    """
    if token is not None and not _TOKEN.match(token):
        # The token is not repeated: logs are read by others.
        raise ConfigurationError("token is not usable; allowed: printable ASCII, no spaces")


def _seconds(text: str | None) -> float | None:
    """Read a Retry-After of seconds; its form with a date is not worth a clock comparison."""
    if text is None or not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return None
    return min(float(text), _MAX_RETRY_AFTER_SECONDS)


def _lost(message: str) -> TelemetryError:
    return TelemetryError(message, code="connection_lost")

"""Metrics of the collector for Prometheus.

Labels take values from fixed sets only (route templates, states, codes), so that no caller can
create series at will.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from itertools import product
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stabilizer import __version__
from stabilizer.clock import Clock
from stabilizer.collector.services.change_feed import Audience, ChangeFeed
from stabilizer.collector.services.overview import StateCounts
from stabilizer.errors import StorageError
from stabilizer.protocol.batches import BatchAnswer
from stabilizer.protocol.commands import CommandKind, CommandState
from stabilizer.protocol.decisions import IncidentState
from stabilizer.protocol.frames import Batch
from stabilizer.protocol.message import PROTOCOL_VERSION
from stabilizer.protocol.runs import RunState

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
"""Seconds: a batch takes a few milliseconds, a long poll up to 60."""


class Metrics:
    """The metrics of one app, in a registry of its own: apps in one process share none.

    Args:
        clock: Source of time.
        feed: Counts the long polls and event streams of this app.
    """

    def __init__(self, clock: Clock, feed: ChangeFeed) -> None:
        self._clock = clock
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "stabilizer_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "stabilizer_http_request_seconds",
            "Seconds from the first byte of a request to the last of its answer; long polls and "
            "event streams include their wait.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=registry,
        )
        self.batches = Counter(
            "stabilizer_batches",
            "Batches by outcome: accepted, duplicate, or refused with a code.",
            ("outcome", "code"),
            registry=registry,
        )
        self.frames = Counter("stabilizer_frames", "Frames stored.", registry=registry)
        self.points = Counter("stabilizer_points", "Values stored.", registry=registry)
        self.last_frame = Gauge(
            "stabilizer_last_frame_timestamp_seconds",
            "When frames were last stored; 0 if none since the start.",
            registry=registry,
        )
        waiting = Gauge("stabilizer_long_polls", "Open long polls for commands.", registry=registry)
        waiting.set_function(lambda: feed.num_listeners(Audience.JOB))
        following = Gauge("stabilizer_event_streams", "Open event streams.", registry=registry)
        following.set_function(lambda: feed.num_listeners(Audience.PAGE))
        self.sweeps = Counter(
            "stabilizer_sweeps",
            "Sweeps for lost runs and expired commands, by outcome.",
            ("outcome",),
            registry=registry,
        )
        self.scrape_failures = Counter(
            "stabilizer_scrape_failures",
            "Scrapes during which the database did not respond; they lack the state of runs.",
            registry=registry,
        )
        info = Info("stabilizer_build", "This collector.", registry=registry)
        info.info(
            {
                "version": __version__,
                "python": platform.python_version(),
                "protocol_version": str(PROTOCOL_VERSION),
            }
        )

    def stored(self, answer: BatchAnswer, frames: int, points: int) -> None:
        """Count an accepted batch or a duplicate."""
        if answer.duplicate:
            self.batches.labels("duplicate", "").inc()
            return
        self.batches.labels("accepted", "").inc()
        if frames:
            self.frames.inc(frames)
            self.points.inc(points)
            self.last_frame.set(self._clock.now().timestamp())

    def refused(self, code: str) -> None:
        """Count a refused batch."""
        self.batches.labels("refused", code).inc()

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        name = method if method in _METHODS else "other"
        self.requests.labels(name, route, str(status)).inc()
        self.request_seconds.labels(name, route).observe(seconds)

    def exposition(self, count: Callable[[], StateCounts]) -> bytes:
        """Return all metrics in Prometheus text format.

        Args:
            count: Reads the database; if it does not respond, only this process is covered.
        """
        try:
            state = _state_of(count())
        except StorageError:
            self.scrape_failures.inc()
            return generate_latest(self.registry)
        return generate_latest(self.registry) + generate_latest(state)


def _state_of(counts: StateCounts) -> CollectorRegistry:
    """Put counts into gauges, with a zero for every absent state."""
    registry = CollectorRegistry()
    runs = Gauge("stabilizer_runs", "Runs by state.", ("state",), registry=registry)
    for state in RunState:
        runs.labels(state.value).set(counts.runs.get(state, 0))
    incidents = Gauge("stabilizer_incidents", "Incidents by state.", ("state",), registry=registry)
    for incident_state in IncidentState:
        incidents.labels(incident_state.value).set(counts.incidents.get(incident_state, 0))
    commands = Gauge(
        "stabilizer_commands", "Commands by kind and state.", ("kind", "state"), registry=registry
    )
    for kind, command_state in product(CommandKind, CommandState):
        count = counts.commands.get((kind, command_state), 0)
        commands.labels(kind.value, command_state.value).set(count)
    broken = Gauge(
        "stabilizer_broken_rules",
        "Rules of runs in memory whose last evaluation failed.",
        registry=registry,
    )
    broken.set(counts.broken_rules)
    risk = Gauge(
        "stabilizer_run_risk",
        "Probability that a running job does not recover by itself.",
        ("run_id", "run"),
        registry=registry,
    )
    for (run_id, name), probability in counts.risks.items():
        risk.labels(run_id, name).set(probability)
    return registry


def count_points(batch: Batch) -> tuple[int, int]:
    """Return the number of frames and of values in a batch, absent values excluded."""
    frames = sum(len(block) for block in batch.blocks)
    points = sum(
        block.values.size if block.present is None else int(block.present.sum())
        for block in batch.blocks
    )
    return frames, points


class RequestMetrics:
    """ASGI middleware that counts and times every request, refused and failed ones included."""

    def __init__(self, app: ASGIApp, metrics: Metrics, clock: Clock) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and record its status and duration."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = self._clock.monotonic()
        status = 500  # sent by the outermost layer if the app sends nothing

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            seconds = self._clock.monotonic() - began
            self._metrics.observe(scope["method"], route_template(scope), status, seconds)


def route_template(scope: Scope) -> str:
    """Return the template of a request's route, never its path; `none` without a route."""
    route: BaseRoute | None = scope.get("route")
    template: str = getattr(route, "path", "none")
    return template

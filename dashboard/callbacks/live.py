"""Live updates of every page over one WebSocket, with a badge and banner of its state."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import unquote

from dash import ClientsideFunction, Dash, Input, Output, State, ctx, set_props
from dash.development.base_component import Component
from dash.exceptions import WebsocketDisconnected

from dashboard import ids
from dashboard.client import Collector, LiveHub, Updates
from dashboard.components.connection import link_badge, link_banner
from dashboard.errors import DashboardError, SignInRequiredError
from dashboard.visitor import Visitor, current_visitor
from stabilizer.clock import Clock

_POLL_SECONDS: Final = 1.0
"""How often to check which run a page shows."""
_PACE_SECONDS: Final = 0.25
"""Updates closer together than this are merged."""
_BEAT_SECONDS: Final = 3.0
"""Interval of heartbeats to a page."""
_RETRY_SECONDS: Final = 5.0
_FROZEN_SECONDS: Final = 1800.0
"""How long to wait for a frozen tab, which does not respond."""
_RUN_PATH: Final = re.compile(r"/runs/(?P<run_id>[^/?#]+)/?\Z")

SIGNED_OUT: Final = {"link": "signed_out", "since": None}


class Screen(Protocol):
    """A page in a browser."""

    @property
    def is_closed(self) -> bool:
        """Whether the page was closed."""
        ...

    async def path(self) -> str | None:
        """Return the path of the page.

        Raises:
            TimeoutError: No response: the tab is frozen or closed.
        """
        ...

    def show(self, component_id: str, data: Any) -> None:  # noqa: ANN401  JSON
        """Set the data of a store."""
        ...


@dataclass(frozen=True, slots=True)
class PageState:
    """What a page has received."""

    run_id: str | None
    updates: Updates


async def follow(
    screen: Screen,
    hub: LiveHub,
    visitor: Visitor | None,
    is_signed_in: Callable[[Visitor], bool],
    *,
    clock: Clock,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Send updates to a page until it is closed or the session ends.

    Args:
        screen: The page.
        hub: Live updates from the collector.
        visitor: The user; None if not signed in.
        is_signed_in: Whether a visitor's session is still valid.
        clock: Source of the time sent with heartbeats.
        pause: Sleeps for a number of seconds; for tests.

    Raises:
        TimeoutError: The page has not responded for half an hour.
    """
    heartbeat = _Heartbeat(screen, clock)
    if visitor is None:
        heartbeat.end(SIGNED_OUT)
        return
    async with hub.listening(visitor) as listener:
        sent: PageState | None = None
        answered_at = clock.monotonic()
        while not screen.is_closed:
            if not is_signed_in(visitor):
                heartbeat.end(SIGNED_OUT)
                return
            try:
                run_id = run_of(await screen.path())
            except TimeoutError:
                if clock.monotonic() - answered_at > _FROZEN_SECONDS:
                    raise
                await pause(_RETRY_SECONDS)
                continue
            answered_at = clock.monotonic()
            heartbeat.beat()
            updates = listener.updates(run_id)
            for component_id, data in changes(sent, PageState(run_id, updates)).items():
                screen.show(component_id, data)
            sent = PageState(run_id, updates)
            await listener.wait(run_id, updates, _POLL_SECONDS)
            await pause(_PACE_SECONDS)


class _Heartbeat:
    """Heartbeats to one page."""

    def __init__(self, screen: Screen, clock: Clock) -> None:
        self._screen = screen
        self._clock = clock
        self._due_at = clock.monotonic()

    def beat(self) -> None:
        """Send a heartbeat if one is due."""
        if self._clock.monotonic() >= self._due_at:
            self._due_at = self._clock.monotonic() + _BEAT_SECONDS
            self._show(last=False)

    def end(self, link: Mapping[str, Any]) -> None:
        """Send the final link state and the last heartbeat."""
        self._screen.show(ids.LIVE_LINK, link)
        self._show(last=True)

    def _show(self, *, last: bool) -> None:
        self._screen.show(ids.LIVE_BEAT, {"at": self._clock.now().isoformat(), "last": last})


def run_of(path: str | None) -> str | None:
    """Return the id of the run that a path shows; None for pages that show no single run."""
    found = _RUN_PATH.match(path or "")
    return unquote(found["run_id"]) if found else None


def changes(before: PageState | None, now: PageState) -> Mapping[str, Any]:
    """Return the stores to update, with their data.

    Counts carry the id of their run, so that counts of different runs are never confused.
    """
    known = {} if before is None else _stores(before)
    return {name: data for name, data in _stores(now).items() if known.get(name) != data}


def _stores(state: PageState) -> dict[str, Any]:
    updates, run_id = state.updates, state.run_id
    return {
        ids.LIVE_LINK: {"link": updates.link.value, "since": updates.since.isoformat()},
        ids.LIVE_FRAMES: {"run_id": run_id, "count": updates.frames, "step": updates.step},
        ids.LIVE_DECISIONS: {"run_id": run_id, "count": updates.decisions},
        ids.LIVE_CONTROL: {"count": updates.control},
    }


class _Page:
    """A page at the other end of Dash's WebSocket."""

    def __init__(self) -> None:
        self._socket = ctx.websocket

    @property
    def is_closed(self) -> bool:
        return bool(self._socket.is_shutdown)

    async def path(self) -> str | None:
        found: str | None = await self._socket.get_prop(ids.URL, "pathname")
        return found

    def show(self, component_id: str, data: Any) -> None:  # noqa: ANN401  JSON
        set_props(ids.INCOMING.get(component_id, component_id), {"data": data})


def register(
    app: Dash,
    collector: Collector,
    hub: LiveHub,
    clock: Clock,
    is_signed_in: Callable[[Visitor], bool],
) -> None:
    """Register the stream of updates, and the badge and banner of its state."""

    # Without inputs and outputs: Dash starts it with the page, and again after a lost connection.
    @app.callback(websocket=True, persistent=True)
    async def send_updates() -> None:
        if ctx.websocket is None:
            return  # a browser without SharedWorker: assets/watch.js polls
        try:
            await follow(_Page(), hub, current_visitor(), is_signed_in, clock=clock)
        except (TimeoutError, WebsocketDisconnected):
            return  # the tab was closed

    app.clientside_callback(  # type: ignore[no-untyped-call]  # Dash has no types for it
        ClientsideFunction(namespace="stabilizer", function_name="takeBeat"),
        Input(ids.LIVE_BEAT, "data"),
        prevent_initial_call=True,
    )
    for store, incoming in ids.INCOMING.items():
        app.clientside_callback(  # type: ignore[no-untyped-call]  # Dash has no types for it
            ClientsideFunction(namespace="stabilizer", function_name="keepUpdates"),
            Input(incoming, "data"),
            State(store, "id"),
            prevent_initial_call=True,
        )

    @app.callback(
        Output(ids.LINK_BADGE, "children"),
        Output(ids.BANNER, "children"),
        Input(ids.LIVE_LINK, "data"),
        Input(ids.URL, "pathname"),
    )
    async def show_link(
        link: dict[str, Any] | None, path: str | None
    ) -> tuple[Component | None, Component | None]:
        if link is not None and link["link"] == "polled":
            link = await _polled(link, collector)
        return link_badge(link), link_banner(link, path or "/")


async def _polled(link: dict[str, Any], collector: Collector) -> dict[str, Any]:
    """Return the link state of a page without live updates."""
    try:
        await collector.for_request().control()
    except SignInRequiredError:
        return SIGNED_OUT
    except DashboardError:
        return {"link": "away", "since": None}
    return link

"""News on every page: the one connection that is held open, and what it says of itself."""

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
from dashboard.client import Collector, LiveHub, News
from dashboard.components.connection import link_badge, link_banner
from dashboard.errors import DashboardError, SignInRequiredError
from dashboard.visitor import Visitor, current_visitor
from stabilizer.clock import Clock

_LOOK_SECONDS: Final = 1.0
"""A page that has moved on to another run is noticed after this."""
_PACE_SECONDS: Final = 0.25
"""News closer together than this are told as one: a page has no use for more."""
_BEAT_SECONDS: Final = 3.0
"""How often a page is given a sign of life."""
_ASK_AGAIN_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 1800.0
"""A tab that the browser has frozen answers nothing, and may be looked at again."""
_RUN_PATH: Final = re.compile(r"/runs/(?P<run_id>[^/?#]+)/?\Z")

SIGNED_OUT: Final = {"link": "signed_out", "since": None}


class Screen(Protocol):
    """A page in a browser, as far as this needs it."""

    @property
    def is_gone(self) -> bool:
        """Whether nobody looks any more."""
        ...

    async def path(self) -> str | None:
        """Return the path that the page shows.

        Raises:
            TimeoutError: It does not answer: the tab is frozen, or was closed.
        """
        ...

    def show(self, component_id: str, data: Any) -> None:  # noqa: ANN401  JSON
        """Give a store other data."""
        ...


@dataclass(frozen=True, slots=True)
class Told:
    """What a page knows."""

    run_id: str | None
    news: News


async def follow(
    screen: Screen,
    hub: LiveHub,
    visitor: Visitor | None,
    is_signed_in: Callable[[Visitor], bool],
    *,
    clock: Clock,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Show a page what is new until nobody looks any more, or the session ends.

    Args:
        screen: The page.
        hub: News of the collector.
        visitor: Who looks; None: somebody who must sign in.
        is_signed_in: Whether a visitor's session goes on.
        clock: Its time goes with the signs of life.
        pause: Waits a number of seconds; for tests.

    Raises:
        TimeoutError: The page has not answered for half an hour.
    """
    heart = _Heart(screen, clock)
    if visitor is None:
        heart.end(SIGNED_OUT)
        return
    async with hub.listening(visitor) as listener:
        told: Told | None = None
        answered_at = clock.monotonic()
        while not screen.is_gone:
            if not is_signed_in(visitor):
                heart.end(SIGNED_OUT)
                return
            try:
                run_id = run_of(await screen.path())
            except TimeoutError:
                if clock.monotonic() - answered_at > _PATIENCE_SECONDS:
                    raise
                await pause(_ASK_AGAIN_SECONDS)
                continue
            answered_at = clock.monotonic()
            heart.beat()
            news = listener.news(run_id)
            for component_id, data in changes(told, Told(run_id, news)).items():
                screen.show(component_id, data)
            told = Told(run_id, news)
            await listener.wait(run_id, news, _LOOK_SECONDS)
            await pause(_PACE_SECONDS)


class _Heart:
    """Signs of life for one page."""

    def __init__(self, screen: Screen, clock: Clock) -> None:
        self._screen = screen
        self._clock = clock
        self._due_at = clock.monotonic()

    def beat(self) -> None:
        """Give a sign of life where one is due."""
        if self._clock.monotonic() >= self._due_at:
            self._due_at = self._clock.monotonic() + _BEAT_SECONDS
            self._show(last=False)

    def end(self, link: Mapping[str, Any]) -> None:
        """Say why nothing will be told any more."""
        self._screen.show(ids.LIVE_LINK, link)
        self._show(last=True)

    def _show(self, *, last: bool) -> None:
        self._screen.show(ids.LIVE_BEAT, {"at": self._clock.now().isoformat(), "last": last})


def run_of(path: str | None) -> str | None:
    """Return the id of the run that a path shows; None for pages that show no single run."""
    found = _RUN_PATH.match(path or "")
    return unquote(found["run_id"]) if found else None


def changes(told: Told | None, now: Told) -> Mapping[str, Any]:
    """Return the stores that must hold something else, with what.

    Counts go with the run that they are of, so that the count of another run is never taken for
    the same.
    """
    before = None if told is None else _stores(told)
    return {
        name: data for name, data in _stores(now).items() if before is None or before[name] != data
    }


def _stores(told: Told) -> dict[str, Any]:
    news, run_id = told.news, told.run_id
    return {
        ids.LIVE_LINK: {"link": news.link.value, "since": news.since.isoformat()},
        ids.LIVE_FRAMES: {"run_id": run_id, "count": news.frames, "step": news.step},
        ids.LIVE_DECISIONS: {"run_id": run_id, "count": news.decisions},
        ids.LIVE_CONTROL: {"count": news.control},
    }


class _Page:
    """A page at the other end of Dash's WebSocket."""

    def __init__(self) -> None:
        self._socket = ctx.websocket

    @property
    def is_gone(self) -> bool:
        return bool(self._socket.is_shutdown)

    async def path(self) -> str | None:
        found: str | None = await self._socket.get_prop(ids.URL, "pathname")
        return found

    def show(self, component_id: str, data: Any) -> None:  # noqa: ANN401  JSON
        set_props(ids.TOLD.get(component_id, component_id), {"data": data})


def register(
    app: Dash,
    collector: Collector,
    hub: LiveHub,
    clock: Clock,
    is_signed_in: Callable[[Visitor], bool],
) -> None:
    """Register the stream of news, and the badge and banner that tell how it stands."""

    # Without inputs and outputs: Dash starts it with the page, and again after a lost connection.
    @app.callback(websocket=True, persistent=True)
    async def tell_news() -> None:
        if ctx.websocket is None:
            return  # a browser without SharedWorker: assets/watch.js has the page ask by itself
        try:
            await follow(_Page(), hub, current_visitor(), is_signed_in, clock=clock)
        except (TimeoutError, WebsocketDisconnected):
            return  # the tab was closed

    app.clientside_callback(  # type: ignore[no-untyped-call]  # Dash has no types for it
        ClientsideFunction(namespace="stabilizer", function_name="takeBeat"),
        Input(ids.LIVE_BEAT, "data"),
        prevent_initial_call=True,
    )
    for store, told in ids.TOLD.items():
        app.clientside_callback(  # type: ignore[no-untyped-call]  # Dash has no types for it
            ClientsideFunction(namespace="stabilizer", function_name="keepNews"),
            Input(told, "data"),
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
    """Find out how the link stands for a page that is told no news."""
    try:
        await collector.asked_now().control()
    except SignInRequiredError:
        return SIGNED_OUT
    except DashboardError:
        return {"link": "away", "since": None}
    return link

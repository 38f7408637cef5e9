"""News on every page: the one connection that is held open, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, ctx, set_props
from dash.development.base_component import Component
from dash.exceptions import WebsocketDisconnected

from dashboard import ids
from dashboard.client import Collector, LiveHub
from dashboard.components.link import link_badge, link_banner
from dashboard.errors import DashboardError, SignInRequiredError
from dashboard.handlers.live import SIGNED_OUT, follow
from dashboard.visitor import Visitor, current_visitor
from stabilizer.clock import Clock


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

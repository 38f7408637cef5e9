"""News on every page: the one connection that is held open, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, ctx, set_props
from dash.development.base_component import Component
from dash.exceptions import WebsocketDisconnected

from dashboard import ids
from dashboard.client import LiveHub
from dashboard.components.link import link_badge, link_banner
from dashboard.handlers.live import follow
from dashboard.visitor import Visitor, current_visitor


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


def register(app: Dash, hub: LiveHub, is_signed_in: Callable[[Visitor], bool]) -> None:
    """Register the stream of news, and the badge and banner that tell how it stands."""

    # Without inputs and outputs: Dash starts it with the page, and again after a lost connection.
    @app.callback(websocket=True, persistent=True)
    async def tell_news() -> None:
        try:
            await follow(_Page(), hub, current_visitor(), is_signed_in)
        except (TimeoutError, WebsocketDisconnected):
            return  # the tab was closed

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
        return link_badge(link), link_banner(link, path or "/")

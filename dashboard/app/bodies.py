"""Bodies of requests: read before anything else sees them, and never more than a page sends."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.types import Message, Receive

MAX_BODY_BYTES: Final = 2**20
"""The largest that a page sends tells what its charts show: names, steps and ranges, some KiB."""


async def read_ahead(headers: Headers, receive: Receive) -> Receive | None:
    """Read the body of a request, signed in or not; None: it is too large.

    It is read here, since Dash takes an error while it reads for a body without anything in it.

    Args:
        headers: Of the request.
        receive: Where its body comes from, in pieces of any number.

    Returns:
        What gives the same once more, in one piece, and then goes on.
    """
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
        return None
    body, message = bytearray(), await receive()
    while message["type"] == "http.request":
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            message = {"type": "http.request", "body": bytes(body), "more_body": False}
            break
        message = await receive()
    read: list[Message] = [message]  # or that the browser has gone, half way

    async def once_more() -> Message:
        return read.pop() if read else await receive()

    return once_more

"""The size limit of request bodies."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from starlette.datastructures import Headers

from stabilizer.errors import StabilizerError

_MAX_DIGITS: Final = 20
"""Longer numbers exceed every limit; int() refuses very long ones."""


class BodyTooLargeError(StabilizerError):
    """A body is longer than allowed; the rest of it is not read."""

    code = "body_too_large"


async def limit_body(
    headers: Headers, chunks: AsyncIterator[bytes], max_bytes: int
) -> AsyncGenerator[bytes, None]:
    """Pass a body on in pieces and refuse it as soon as it is known to be too large.

    Args:
        headers: Headers of the request; its Content-Length may refuse it before any byte is read.
        chunks: The pieces of the body, of any number and size.
        max_bytes: The largest body allowed.

    Raises:
        BodyTooLargeError: The body has more than `max_bytes`.
    """
    announced = headers.get("content-length", "").lstrip("0")
    if announced.isdecimal() and (len(announced) > _MAX_DIGITS or int(announced) > max_bytes):
        raise _too_large(f"{announced[:_MAX_DIGITS]} bytes announced", max_bytes)
    received = 0
    async for chunk in chunks:
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(f"more than {max_bytes} bytes sent", max_bytes)
        yield chunk


def _too_large(found: str, max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"{found}; allowed: at most {max_bytes} bytes")

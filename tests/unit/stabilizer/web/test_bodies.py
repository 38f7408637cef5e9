"""The limit of request bodies, whatever their length, pieces and headers are."""

import asyncio

import pytest
from starlette.datastructures import Headers

from stabilizer.web.bodies import BodyTooLargeError, limit_body

LIMIT = 10


class Sender:
    """A client that sends a body in pieces; counts how many were read."""

    def __init__(self, *pieces):
        self.pieces, self.num_read = pieces, 0

    async def chunks(self):
        for piece in self.pieces:
            self.num_read += 1
            await asyncio.sleep(0)
            if isinstance(piece, Exception):
                raise piece
            yield piece


def receive(sender, *lengths):
    """Read a whole body, announced by any number of Content-Length headers."""

    async def read():
        headers = Headers(raw=[(b"content-length", text.encode("latin-1")) for text in lengths])
        return [chunk async for chunk in limit_body(headers, sender.chunks(), LIMIT)]

    return asyncio.run(read())


@pytest.mark.parametrize(
    "pieces",
    [(), (b"",), (b"a" * LIMIT,), (b"a",) * LIMIT, (b"", b"abc", b"", b"d", b"")],
    ids=["none", "empty", "whole", "slow", "gaps"],
)
def test_up_to_the_limit_the_pieces_pass_unchanged(pieces):
    assert receive(Sender(*pieces)) == list(pieces)


def test_each_piece_passes_before_the_next_is_read():
    async def read():
        sender = Sender(b"a", b"b")
        passed = limit_body(Headers(), sender.chunks(), LIMIT)
        assert (await anext(passed), sender.num_read) == (b"a", 1)
        await passed.aclose()

    asyncio.run(read())


def test_a_body_beyond_the_limit_is_refused_and_not_read_further():
    sender = Sender(b"a" * 6, b"b" * 6, b"c")
    with pytest.raises(BodyTooLargeError, match="more than 10 bytes sent; allowed: at most 10"):
        receive(sender)
    assert sender.num_read == 2


@pytest.mark.parametrize("length", ["11", "0011", "9" * 30, "9" * 5000], ids=len)
def test_an_announced_length_beyond_the_limit_is_refused_before_anything_is_read(length):
    sender = Sender(b"a")
    with pytest.raises(BodyTooLargeError, match="bytes announced") as caught:
        receive(sender, length)
    assert sender.num_read == 0
    assert len(caught.value.message) < 100


@pytest.mark.parametrize(
    "length", ["", "-1", "+11", "NaN", "inf", "1e9", "0x1F", "11, 11", "\u00b2\u00b2", "1_1"]
)
def test_a_length_that_is_not_a_number_leaves_the_count_of_bytes(length):
    assert receive(Sender(b"abc"), length) == [b"abc"]
    with pytest.raises(BodyTooLargeError, match="sent"):
        receive(Sender(b"a" * 11), length)


@pytest.mark.parametrize("lengths", [("2",), ("2", "11"), ("2", "2"), ("0",)])
def test_a_body_longer_than_announced_is_still_bounded(lengths):
    with pytest.raises(BodyTooLargeError, match="sent"):
        receive(Sender(b"a" * 6, b"b" * 6), *lengths)


def test_a_client_that_disconnects_half_way_is_reported():
    with pytest.raises(ConnectionResetError):
        receive(Sender(b"a", ConnectionResetError()))

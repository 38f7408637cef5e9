"""Whose request it is, seen from inside it."""

import asyncio

import pytest
from pydantic import SecretStr

from dashboard.visitor import Visitor, current_visitor, visited_by

ADA, BOB = Visitor(name="ada", token=SecretStr("a" * 43)), Visitor(name="bob")


def test_no_visitor_outside_of_a_request():
    assert current_visitor() is None


def test_it_is_forgotten_behind_the_request_also_if_that_failed():
    def fail():
        with visited_by(ADA):
            raise RuntimeError(current_visitor().name)

    with pytest.raises(RuntimeError, match="ada"):
        fail()
    assert current_visitor() is None


def test_tasks_and_threads_of_a_request_ask_in_its_name_and_requests_stay_apart():
    async def request(visitor, other_began):
        with visited_by(visitor):
            task = asyncio.create_task(later(other_began))
            thread = asyncio.to_thread(current_visitor)
        return await task, await thread

    async def later(other_began):
        await other_began.wait()
        return current_visitor()

    async def scenario():
        began = asyncio.Event()
        first = asyncio.create_task(request(ADA, began))
        second = asyncio.create_task(request(BOB, began))
        began.set()
        return await first, await second

    assert asyncio.run(scenario()) == ((ADA, None), (BOB, None))


def test_a_token_does_not_show():
    assert "aaa" not in repr(ADA)

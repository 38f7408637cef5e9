"""Waiting as coroutines: woken from threads, by the clock, by the end."""

import asyncio
import threading

import pytest

from stabilizer.collector.api.long_poll import LongPolls, poll_until_news

FOREVER = 60.0


class Run:
    """A run whose news is a flag; counts how often it was looked at."""

    def __init__(self, polls):
        self.polls = polls
        self.news = False
        self.looks = 0
        self.looked = threading.Event()

    def look(self):
        self.looks += 1
        self.looked.set()
        return self.looks, self.news

    async def poll(self, wait_seconds, run_id="a"):
        with self.polls.waiting(run_id) as waiting:
            return await poll_until_news(self.look, waiting, self.polls, wait_seconds)


def together(scenario):
    async def main():
        polls = LongPolls()
        polls.open()
        async with asyncio.timeout(20):
            return await scenario(polls)

    return asyncio.run(main())


async def until(condition):
    while not condition():  # noqa: ASYNC110  conditions of many kinds, each true soon
        await asyncio.sleep(0)


def test_news_at_the_first_look_is_answered_at_once():
    async def scenario(polls):
        run = Run(polls)
        run.news = True
        return await run.poll(FOREVER)

    assert together(scenario) == 1


def test_without_waiting_there_is_one_look():
    assert together(lambda polls: Run(polls).poll(0.0)) == 1


def test_when_the_time_is_up_it_looks_once_more():
    assert together(lambda polls: Run(polls).poll(0.5)) == 2


def test_a_change_in_another_thread_wakes_it():
    async def scenario(polls):
        run = Run(polls)
        task = asyncio.create_task(run.poll(FOREVER))
        await until(run.looked.is_set)

        def change():
            run.news = True
            polls.notify("a")

        await asyncio.to_thread(change)
        return await task

    assert together(scenario) == 2


def test_a_change_without_news_lets_it_wait_on():
    async def scenario(polls):
        run = Run(polls)
        task = asyncio.create_task(run.poll(FOREVER))
        await until(run.looked.is_set)
        polls.notify("a")
        await until(lambda: run.looks == 2)
        assert not task.done()
        run.news = True
        polls.notify("a")
        return await task

    assert together(scenario) == 3


def test_a_change_between_look_and_wait_is_not_missed():
    async def scenario(polls):
        run = Run(polls)
        plain = run.look

        def look():
            answer = plain()
            if run.looks == 1:
                run.news = True
                polls.notify("a")
            return answer

        run.look = look
        return await run.poll(FOREVER)

    assert together(scenario) == 2


def test_another_run_wakes_nobody_here():
    async def scenario(polls):
        run, other = Run(polls), Run(polls)
        here = asyncio.create_task(run.poll(FOREVER, "a"))
        there = asyncio.create_task(other.poll(FOREVER, "b"))
        await until(lambda: run.looks == 1 and other.looks == 1)
        other.news = True
        polls.notify("b")
        await there
        assert run.looks == 1
        polls.close()
        await here

    together(scenario)


def test_the_end_of_the_server_wakes_everybody_and_lets_nobody_wait_again():
    async def scenario(polls):
        runs = [Run(polls) for _ in range(50)]
        tasks = [asyncio.create_task(run.poll(FOREVER)) for run in runs]
        await until(lambda: len(polls) == 50 and all(run.looks == 1 for run in runs))
        polls.close()
        await asyncio.gather(*tasks)
        assert len(polls) == 0
        assert await Run(polls).poll(FOREVER) == 1

    together(scenario)


def test_who_hung_up_is_not_answered():
    async def scenario(polls):
        run = Run(polls)
        with polls.waiting("a") as waiting:
            task = asyncio.create_task(poll_until_news(run.look, waiting, polls, FOREVER))
            await until(run.looked.is_set)
            run.news = True
            waiting.leave()
            assert await task is None
        assert run.looks == 1

    together(scenario)


def test_hundreds_wait_without_holding_a_thread():
    async def scenario(polls):
        runs = [Run(polls) for _ in range(500)]
        tasks = [asyncio.create_task(run.poll(FOREVER)) for run in runs]
        await until(lambda: all(run.looks for run in runs))
        # The pool has 40 threads; with 500 waiting it still answers.
        fast = Run(polls)
        assert await fast.poll(0.0) == 1
        polls.close()
        await asyncio.gather(*tasks)

    together(scenario)


@pytest.mark.parametrize("opened", [False, True], ids=["before the start", "after the end"])
def test_notify_outside_the_life_of_the_loop_is_harmless(opened):
    polls = LongPolls()
    if opened:

        async def main():
            polls.open()

        asyncio.run(main())
    polls.notify("a")
    assert len(polls) == 0

"""Waiting as coroutines: woken from threads, by the clock, by the end."""

import asyncio
import threading

import pytest

from stabilizer.collector.api.routers.commands import poll_until_news
from stabilizer.collector.services.change_feed import Audience, Change, ChangeFeed

FOREVER = 60.0


def news(run_id):
    return Change(run_id=run_id, wakes_job=True)


class Run:
    """A run whose news is a flag; counts how often it was looked at."""

    def __init__(self, feed):
        self.feed = feed
        self.news = False
        self.looks = 0
        self.looked = threading.Event()

    def look(self):
        self.looks += 1
        self.looked.set()
        return self.looks, self.news

    async def poll(self, wait_seconds, run_id="a"):
        with self.feed.listening(Audience.JOB, run_id) as listener:
            return await poll_until_news(self.look, listener, self.feed, wait_seconds)


def together(scenario):
    async def main():
        feed = ChangeFeed()
        feed.open()
        async with asyncio.timeout(20):
            return await scenario(feed)

    return asyncio.run(main())


async def until(condition):
    while not condition():  # noqa: ASYNC110  conditions of many kinds, each true soon
        await asyncio.sleep(0)


def test_news_at_the_first_look_is_answered_at_once():
    async def scenario(feed):
        run = Run(feed)
        run.news = True
        return await run.poll(FOREVER)

    assert together(scenario) == 1


def test_without_waiting_there_is_one_look():
    assert together(lambda feed: Run(feed).poll(0.0)) == 1


def test_when_the_time_is_up_it_looks_once_more():
    assert together(lambda feed: Run(feed).poll(0.5)) == 2


def test_a_change_in_another_thread_wakes_it():
    async def scenario(feed):
        run = Run(feed)
        task = asyncio.create_task(run.poll(FOREVER))
        await until(run.looked.is_set)

        def change():
            run.news = True
            feed.notify(news("a"))

        await asyncio.to_thread(change)
        return await task

    assert together(scenario) == 2


def test_a_change_without_news_lets_it_wait_on():
    async def scenario(feed):
        run = Run(feed)
        task = asyncio.create_task(run.poll(FOREVER))
        await until(run.looked.is_set)
        feed.notify(news("a"))
        await until(lambda: run.looks == 2)
        assert not task.done()
        run.news = True
        feed.notify(news("a"))
        return await task

    assert together(scenario) == 3


def test_a_change_between_look_and_wait_is_not_missed():
    async def scenario(feed):
        run = Run(feed)
        plain = run.look

        def look():
            answer = plain()
            if run.looks == 1:
                run.news = True
                feed.notify(news("a"))
            return answer

        run.look = look
        return await run.poll(FOREVER)

    assert together(scenario) == 2


def test_another_run_wakes_nobody_here():
    async def scenario(feed):
        run, other = Run(feed), Run(feed)
        here = asyncio.create_task(run.poll(FOREVER, "a"))
        there = asyncio.create_task(other.poll(FOREVER, "b"))
        await until(lambda: run.looks == 1 and other.looks == 1)
        other.news = True
        feed.notify(news("b"))
        await there
        assert run.looks == 1
        feed.close()
        await here

    together(scenario)


def test_the_end_of_the_server_wakes_everybody_and_lets_nobody_wait_again():
    async def scenario(feed):
        runs = [Run(feed) for _ in range(50)]
        tasks = [asyncio.create_task(run.poll(FOREVER)) for run in runs]
        await until(
            lambda: feed.num_listeners(Audience.JOB) == 50 and all(run.looks == 1 for run in runs)
        )
        feed.close()
        await asyncio.gather(*tasks)
        assert feed.num_listeners(Audience.JOB) == 0
        assert await Run(feed).poll(FOREVER) == 1

    together(scenario)


def test_who_hung_up_is_not_answered():
    async def scenario(feed):
        run = Run(feed)
        with feed.listening(Audience.JOB, "a") as listener:
            task = asyncio.create_task(poll_until_news(run.look, listener, feed, FOREVER))
            await until(run.looked.is_set)
            run.news = True
            listener.leave()
            assert await task is None
        assert run.looks == 1

    together(scenario)


def test_hundreds_wait_without_holding_a_thread():
    async def scenario(feed):
        runs = [Run(feed) for _ in range(500)]
        tasks = [asyncio.create_task(run.poll(FOREVER)) for run in runs]
        await until(lambda: all(run.looks for run in runs))
        # The pool has 40 threads; with 500 waiting it still answers.
        fast = Run(feed)
        assert await fast.poll(0.0) == 1
        feed.close()
        await asyncio.gather(*tasks)

    together(scenario)


@pytest.mark.parametrize("opened", [False, True], ids=["before the start", "after the end"])
def test_notify_outside_the_life_of_the_loop_is_harmless(opened):
    feed = ChangeFeed()
    if opened:

        async def main():
            feed.open()

        asyncio.run(main())
    feed.notify(news("a"))
    assert feed.num_listeners(Audience.JOB) == 0

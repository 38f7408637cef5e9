"""The feed of changes, read at the reader's own pace."""

import asyncio
import threading

import pytest

from stabilizer.collector.services.change_feed import Audience, Change, ChangeFeed


@pytest.fixture
def feed():
    return ChangeFeed()


def frames(run_id="a", step=1):
    return Change(run_id=run_id, frames=True, step=step)


def news(run_id="a", step=1):
    return Change(run_id=run_id, decisions=True, wakes_job=True, step=step)


def test_a_current_cursor_returns_no_events(feed):
    feed.notify(frames())
    cursor = feed.cursor()
    assert feed.since(cursor) == (cursor, [])


def test_many_changes_collapse_into_one_event(feed):
    cursor = feed.cursor()
    feed.notify(news(step=5))
    for step in range(6, 1000):
        feed.notify(frames(step=step))
    _, (event,) = feed.since(cursor)
    assert (event.run_id, event.frames, event.decisions) == ("a", True, True)
    assert (event.version, event.step) == (995, 999)


def test_an_event_is_returned_once(feed):
    cursor = feed.cursor()
    feed.notify(news())
    cursor, _ = feed.since(cursor)
    feed.notify(frames(step=2))
    cursor, (event,) = feed.since(cursor)
    assert (event.frames, event.decisions, event.version) == (True, False, 2)
    assert feed.since(cursor)[1] == []


def test_each_run_has_its_own_event_in_the_order_of_the_last_change(feed):
    cursor = feed.cursor()
    for run_id in ("a", "b", "c", "a"):
        feed.notify(frames(run_id))
    assert [event.run_id for event in feed.since(cursor)[1]] == ["b", "c", "a"]


def test_two_cursors_do_not_disturb_each_other(feed):
    slow = quick = feed.cursor()
    feed.notify(frames("a"))
    quick, _ = feed.since(quick)
    feed.notify(frames("b"))
    assert [event.run_id for event in feed.since(quick)[1]] == ["b"]
    assert [event.run_id for event in feed.since(slow)[1]] == ["a", "b"]


def test_a_run_is_followed_with_what_concerns_all_runs(feed):
    cursor = feed.cursor()
    feed.notify(frames("a"))
    feed.notify(frames("b"))
    feed.notify(Change(run_id=None, decisions=True))
    assert {event.run_id for event in feed.since(cursor, "a")[1]} == {"a", None}
    assert {event.run_id for event in feed.since(cursor, "other")[1]} == {None}


def test_a_job_is_woken_only_by_what_concerns_it(feed):
    async def main():
        feed.open()
        with feed.listening(Audience.JOB, "a") as listener:
            for change in (
                frames(),
                Change(run_id="a", decisions=True),
                Change(run_id=None, decisions=True),
                news("b"),
            ):
                feed.notify(change)
            woken = await listener.wait(0.01)
            feed.notify(news())
            return woken, await listener.wait(20)

    assert asyncio.run(main()) == (False, True)


def test_a_hundred_thousand_changes_take_one_record_per_run(feed):
    for number in range(100_000):
        feed.notify(frames(f"run {number % 10}"))
    assert len(feed._records) == 10
    assert feed.cursor() == 100_000


def test_no_change_of_many_threads_is_lost(feed):
    def work(name):
        for step in range(500):
            feed.notify(frames(name, step))

    cursor = feed.cursor()
    threads = [threading.Thread(target=work, args=(f"r{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    seen = {}
    while any(thread.is_alive() for thread in threads) or feed.cursor() > cursor:
        cursor, events = feed.since(cursor)
        seen |= {event.run_id: event for event in events}
    assert {name: (event.version, event.step) for name, event in seen.items()} == {
        f"r{i}": (500, 499) for i in range(4)
    }


def test_each_start_has_its_own_id():
    assert ChangeFeed().start_id != ChangeFeed().start_id

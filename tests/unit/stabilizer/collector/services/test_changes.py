"""Changes as those see them who follow at their own pace."""

import threading

import pytest

from stabilizer.collector.services.changes import Change, Changes


@pytest.fixture
def changes():
    return Changes()


def frames(run_id="a", step=1):
    return Change(run_id=run_id, frames=True, step=step)


def news(run_id="a", step=1):
    return Change(run_id=run_id, decisions=True, wakes_job=True, step=step)


def test_who_has_heard_of_everything_hears_nothing(changes):
    changes.notify(frames())
    cursor = changes.cursor()
    assert changes.since(cursor) == (cursor, [])


def test_many_changes_are_told_as_the_last_state_with_all_that_happened(changes):
    cursor = changes.cursor()
    changes.notify(news(step=5))
    for step in range(6, 1000):
        changes.notify(frames(step=step))
    _, (event,) = changes.since(cursor)
    assert (event.run_id, event.frames, event.decisions) == ("a", True, True)
    assert (event.version, event.step) == (995, 999)


def test_what_was_told_is_not_told_again(changes):
    cursor = changes.cursor()
    changes.notify(news())
    cursor, _ = changes.since(cursor)
    changes.notify(frames(step=2))
    cursor, (event,) = changes.since(cursor)
    assert (event.frames, event.decisions, event.version) == (True, False, 2)
    assert changes.since(cursor)[1] == []


def test_each_run_has_its_own_event_in_the_order_of_the_last_change(changes):
    cursor = changes.cursor()
    for run_id in ("a", "b", "c", "a"):
        changes.notify(frames(run_id))
    assert [event.run_id for event in changes.since(cursor)[1]] == ["b", "c", "a"]


def test_two_cursors_do_not_disturb_each_other(changes):
    slow = quick = changes.cursor()
    changes.notify(frames("a"))
    quick, _ = changes.since(quick)
    changes.notify(frames("b"))
    assert [event.run_id for event in changes.since(quick)[1]] == ["b"]
    assert [event.run_id for event in changes.since(slow)[1]] == ["a", "b"]


def test_one_run_is_followed_with_what_concerns_all(changes):
    cursor = changes.cursor()
    changes.notify(frames("a"))
    changes.notify(frames("b"))
    changes.notify(Change(run_id=None, decisions=True))
    assert {event.run_id for event in changes.since(cursor, "a")[1]} == {"a", None}
    assert {event.run_id for event in changes.since(cursor, "other")[1]} == {None}


def test_only_news_counts_for_a_waiting_job(changes):
    changes.notify(frames())
    changes.notify(Change(run_id="a", decisions=True))
    assert changes.version("a") == 0
    changes.notify(news())
    assert changes.version("a") == 1


def test_a_memory_of_a_hundred_thousand_changes_is_one_record_a_run(changes):
    for number in range(100_000):
        changes.notify(frames(f"run {number % 10}"))
    assert len(changes._records) == 10
    assert changes.cursor() == 100_000


def test_no_change_of_many_threads_is_lost(changes):
    def work(name):
        for step in range(500):
            changes.notify(frames(name, step))

    cursor = changes.cursor()
    threads = [threading.Thread(target=work, args=(f"r{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    seen = {}
    while any(thread.is_alive() for thread in threads) or changes.cursor() > cursor:
        cursor, events = changes.since(cursor)
        seen |= {event.run_id: event for event in events}
    assert {name: (event.version, event.step) for name, event in seen.items()} == {
        f"r{i}": (500, 499) for i in range(4)
    }


def test_two_starts_have_two_names():
    assert Changes().start_id != Changes().start_id

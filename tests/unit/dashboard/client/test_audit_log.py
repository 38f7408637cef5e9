"""Audit logs are read on from where they are known; a token that is not taken gets nothing."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from dashboard.client.collector import MOST_ENTRIES, AuditLogs
from dashboard.errors import SignInRequiredError
from stabilizer.protocol.queries import AuditAction, AuditEntry, AuditPage, AuditReason

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LIMIT = 1000


class Log:
    """The collector's end of a log."""

    def __init__(self, count=0, start=START):
        self.start, self.count = start, count
        self.asked = []
        self.refuses = False

    async def __call__(self, after):
        if self.refuses:
            raise SignInRequiredError("the token is not taken")
        self.asked.append(after)
        last = min(after + LIMIT, self.count)
        entries = tuple(self.entry(number) for number in range(after + 1, last + 1))
        return AuditPage(entries=entries, next_after=last if last < self.count else None)

    def entry(self, number):
        return AuditEntry(
            id=number,
            at=self.start + timedelta(seconds=number),
            run_id="r",
            actor="job",
            action=AuditAction.COMMAND_CHANGED,
            subject=f"c{number}",
            reason=AuditReason.CARRIED_OUT,
            message="",
            before=None,
            after={"lr": float("nan")},  # not equal to itself
        )


def read(logs, log, path="/a"):
    return [entry.id for entry in asyncio.run(logs.read(path, log))]


def test_what_is_known_is_not_read_again():
    logs, log = AuditLogs(), Log(2500)
    assert read(logs, log) == list(range(1, 2501))
    assert log.asked == [0, 1000, 2000]
    log.asked.clear()
    assert read(logs, log) == list(range(1, 2501))
    log.count = 2503
    assert read(logs, log) == list(range(1, 2504))
    assert log.asked == [2499, 2499]


def test_a_log_that_was_empty_is_read_from_its_beginning():
    logs, log = AuditLogs(), Log(0)
    assert read(logs, log) == []
    log.count = 2
    assert read(logs, log) == [1, 2]


@pytest.mark.parametrize("other", [Log(), Log(3), Log(7, START + timedelta(days=1))])
def test_another_log_at_the_same_place_is_noticed(other):
    logs = AuditLogs()
    read(logs, Log(7))
    assert read(logs, other) == list(range(1, other.count + 1))


def test_who_may_not_ask_gets_nothing_of_what_is_known():
    logs, log = AuditLogs(), Log(5)
    read(logs, log)
    log.refuses = True
    with pytest.raises(SignInRequiredError):
        read(logs, log)
    log.refuses = False
    log.count = 6
    assert read(logs, log) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("growth", [0, 1, 999, 2 * MOST_ENTRIES])
def test_of_a_long_log_the_newest_entries_are_kept(growth):
    logs, log = AuditLogs(), Log(MOST_ENTRIES + 500)
    read(logs, log)
    log.count += growth
    assert read(logs, log) == list(range(log.count - MOST_ENTRIES + 1, log.count + 1))


def test_logs_do_not_mix_and_those_not_asked_for_are_forgotten():
    logs, first = AuditLogs(), Log(3)
    read(logs, first, "/first")
    for number in range(20):
        assert len(read(logs, Log(number), f"/{number}")) == number
    first.asked.clear()
    assert read(logs, first, "/first") == [1, 2, 3]
    assert first.asked == [0]


def test_what_a_page_does_with_its_log_is_its_own_business():
    logs, log = AuditLogs(), Log(3)
    asyncio.run(logs.read("/a", log)).clear()
    assert read(logs, log) == [1, 2, 3]


def test_concurrent_reads_get_the_same_log():
    logs, log = AuditLogs(), Log(2500)

    async def both():
        return await asyncio.gather(logs.read("/a", log), logs.read("/a", log))

    one, other = asyncio.run(both())
    assert [entry.id for entry in one] == [entry.id for entry in other] == list(range(1, 2501))

"""Sweeps are repeated through failures until they are stopped."""

import asyncio
import logging
import threading
from types import SimpleNamespace

import pytest

from stabilizer.clock import SystemClock
from stabilizer.collector.api.metrics import Metrics
from stabilizer.collector.api.sweeper import Sweeper
from stabilizer.collector.services.change_feed import ChangeFeed
from stabilizer.errors import StorageError

SOON = 0.001
NEVER = 60.0


class Services:
    """Counts sweeps; fails a given number of times."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.sweeps = 0
        self.enough = threading.Event()
        self.wanted = 1
        self.runs = SimpleNamespace(sweep_lost=self.sweep, sweep_clocks=lambda: None)
        self.commands = SimpleNamespace(expire_due=lambda: 0)

    def sweep(self):
        self.sweeps += 1
        if self.sweeps >= self.wanted:
            self.enough.set()
        if self.failures:
            raise self.failures.pop(0)


@pytest.fixture
def metrics():
    return Metrics(SystemClock(), ChangeFeed())


def count(metrics, outcome):
    return metrics.registry.get_sample_value("stabilizer_sweeps_total", {"outcome": outcome}) or 0


def run_until_enough(sweeper, services):
    async def main():
        async with asyncio.timeout(20):
            async with sweeper.running(stop_seconds=10):
                running = sweeper.is_running
                await asyncio.to_thread(services.enough.wait)
            return running

    return asyncio.run(main())


def test_it_sweeps_again_and_again_and_ends(metrics):
    services = Services()
    services.wanted = 3
    sweeper = Sweeper(services, SOON, metrics)
    assert run_until_enough(sweeper, services)
    assert not sweeper.is_running
    assert services.sweeps >= 3
    assert count(metrics, "done") == services.sweeps


def test_the_end_does_not_wait_for_the_interval(metrics):
    services = Services()
    run_until_enough(Sweeper(services, NEVER, metrics), services)
    assert services.sweeps == 1


def test_a_sweep_that_fails_is_counted_and_the_next_follows(metrics, caplog):
    services = Services(StorageError("away"), StorageError("away"))
    services.wanted = 3
    with caplog.at_level(logging.INFO):
        run_until_enough(Sweeper(services, SOON, metrics), services)
    assert count(metrics, "failed") == 2
    assert count(metrics, "done") >= 1
    levels = [record.levelname for record in caplog.records if "sweep" in record.message]
    assert levels == ["ERROR", "INFO"]  # once when it began, once when it was over


def test_after_a_mistake_of_ours_it_is_logged_and_retried(metrics, caplog):
    services = Services(ValueError("mistake"), TypeError("another"))
    services.wanted = 4
    with caplog.at_level(logging.ERROR):
        assert run_until_enough(Sweeper(services, SOON, metrics), services)
    assert [record.levelname for record in caplog.records] == ["CRITICAL", "CRITICAL"]
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]
    assert "another" in caplog.records[1].message
    assert count(metrics, "failed") == 2
    assert count(metrics, "done") >= 1


def test_from_a_mistake_to_the_next_sweep_that_works_it_does_not_count_as_running(metrics):
    services = Services(ValueError("mistake"), ValueError("mistake"))
    services.wanted = 4
    sweeper = Sweeper(services, SOON, metrics)
    seen = []

    def sweep():  # looks from its own thread, while the loop waits for it
        seen.append(sweeper.is_running)
        services.sweep()

    services.runs = SimpleNamespace(sweep_lost=sweep, sweep_clocks=lambda: None)
    run_until_enough(sweeper, services)
    assert seen[:4] == [True, False, False, True]


@pytest.mark.parametrize("interval", [1.0, 300.0])
def test_each_mistake_in_a_row_doubles_the_pause_up_to_a_minute(metrics, interval):
    sweeper = Sweeper(Services(), interval, metrics)
    pauses = [sweeper.pause_seconds]
    for _ in range(2000):
        sweeper._count(ValueError("mistake"))
        pauses.append(sweeper.pause_seconds)
    assert pauses[:3] == ([1.0, 2.0, 4.0] if interval == 1 else [300.0] * 3)
    assert pauses[-1] == max(60.0, interval)
    sweeper._count(None)
    assert sweeper.pause_seconds == interval


def test_it_ends_at_once_while_it_waits_after_a_mistake(metrics):
    services = Services(ValueError("mistake"))
    sweeper = Sweeper(services, NEVER, metrics)
    run_until_enough(sweeper, services)
    assert (services.sweeps, sweeper.is_running) == (1, False)


def test_before_the_start_it_is_not_running(metrics):
    assert not Sweeper(Services(), SOON, metrics).is_running


def test_an_end_that_takes_too_long_is_not_waited_for(metrics):
    release = threading.Event()
    services = Services()
    services.commands = SimpleNamespace(expire_due=lambda: release.wait(20))
    sweeper = Sweeper(services, SOON, metrics)

    async def main():
        async with asyncio.timeout(20):
            async with sweeper.running(stop_seconds=0.001):
                await asyncio.to_thread(services.enough.wait)
            was_cut_off = not release.is_set()
            release.set()
            return was_cut_off

    assert asyncio.run(main())

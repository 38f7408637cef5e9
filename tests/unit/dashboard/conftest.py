"""A clock that stands still."""

from datetime import UTC, datetime, timedelta

import pytest


class ManualClock:
    """Stands still until told to go on."""

    def __init__(self):
        self.at = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def now(self):
        return self.at

    def monotonic(self):
        return self.at.timestamp()

    def advance(self, seconds):
        self.at += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return ManualClock()

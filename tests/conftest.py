"""The order of the end-to-end tests, and what is loaded once in a process."""

import functools
import ssl
from unittest import mock

import pytest

# The longest first, so that all processes end at the same time; each file stays in one process.
LONGEST_FIRST = (
    "tests/e2e/test_demo.py",
    "tests/e2e/dashboard/test_connection.py",
    "tests/e2e/test_by_hand.py",
    "tests/e2e/dashboard/test_real_run.py",
    "tests/e2e/dashboard/test_pages.py",
)


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(rank)))


@pytest.fixture(scope="session", autouse=True)
def certificates_are_read_once():
    """Reading the file takes each of thousands of HTTP clients 30 ms."""
    read = ssl.create_default_context
    read_once = functools.cache(read)

    def create(*purpose, cafile=None, **more):
        if cafile is None or purpose or more:
            return read(*purpose, cafile=cafile, **more)
        return read_once(cafile=cafile)

    with mock.patch("ssl.create_default_context", create):
        yield

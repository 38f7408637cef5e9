"""The order of all tests, which of them share a process, and what is loaded once in it."""

import functools
import ssl
from unittest import mock

import pytest
from xdist.scheduler import LoadFileScheduling

# The slowest first, each in one process, so that no more than two stacks of processes run at a time
# while the others compute.
END_TO_END = ("tests/e2e/dashboard/", "tests/e2e/")


def end_to_end(name):
    return next((folder for folder in END_TO_END if name.startswith(folder)), None)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: end_to_end(item.nodeid) is None)


class Scheduling(LoadFileScheduling):
    """As `--dist loadfile`, with the files of end-to-end tests taken together."""

    def _split_scope(self, nodeid):
        return end_to_end(nodeid) or super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


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

"""What an agent, a user and a job in JSON of a released version send is answered as it was then."""

import re

import pytest

from tests.compat.wire import Mapping, replay

pytestmark = pytest.mark.timeout(300)

INTENDED = {
    "v0_1": (
        # The refusal of version 99 names the newest version that the collector speaks.
        r"POST /api/v1/runs: answer\.protocol_version is 2 instead of 1$",
        # An alert that is no divergence counts against snapshots for `healthy_after` steps only.
        r"answer\.healthy_snapshots has (?P<now>\d+) items instead of (?P<before>\d+)$",
        # Waits fit the run.
        r"\.deadline_step is \d+ instead of \d+$",
    ),
}
"""What a later version answers differently, and why."""


def is_intended(version, difference):
    """Whether an answer was changed on purpose; lists of healthy snapshots may only grow."""
    found = [re.search(pattern, difference) for pattern in INTENDED.get(version, ())]
    return any(
        each and int(each.groupdict().get("now", 1)) > int(each.groupdict().get("before", 0))
        for each in found
    )


def test_recorded_exchanges_are_answered_as_before(recording, serve, tmp_path):
    with serve(f"sqlite:///{tmp_path}/collector.db") as url:
        differences = replay(url, recording.load("wire.json.gz"), Mapping())
    assert [each for each in differences if not is_intended(recording.version, each)] == []


def test_the_recording_holds_what_an_agent_can_send(recording):
    exchanges = recording.load("wire.json.gz")
    agent = [each for each in exchanges if each["headers"]["user-agent"] == "stabilizer-agent"]
    paths = {each["path"].partition("?")[0].rpartition("/")[2] for each in agent}
    assert {"runs", "frames", "heartbeat", "next", "result"} <= paths
    bodies = [each["body"] for each in agent if each["path"].endswith("/frames")]
    assert all("base64" in body for body in bodies)
    answers = [each["answer"]["json"] for each in agent if each["path"].endswith("/frames")]
    assert {answer["attempt"] for answer in answers} == {1, 2}

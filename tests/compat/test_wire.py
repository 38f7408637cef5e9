"""What an agent, a user and a job in JSON of version 0.1 send is answered as it was then."""

import pytest

from tests.compat.wire import Mapping, load, replay

pytestmark = pytest.mark.timeout(300)

NEWEST_PROTOCOL = ": POST /api/v1/runs: answer.protocol_version is 2 instead of 1"
"""The refusal of version 99 names the newest version that the collector speaks, which has risen."""


def test_recorded_exchanges_are_answered_as_before(serve, tmp_path):
    with serve(f"sqlite:///{tmp_path}/collector.db") as url:
        differences = replay(url, load("wire.json.gz"), Mapping())
    assert [each for each in differences if not each.endswith(NEWEST_PROTOCOL)] == []
    assert len(differences) == 1


def test_the_recording_holds_what_an_agent_can_send():
    exchanges = load("wire.json.gz")
    agent = [each for each in exchanges if each["headers"]["user-agent"] == "stabilizer-agent"]
    paths = {each["path"].partition("?")[0].rpartition("/")[2] for each in agent}
    assert {"runs", "frames", "heartbeat", "next", "result"} <= paths
    bodies = [each["body"] for each in agent if each["path"].endswith("/frames")]
    assert all("base64" in body for body in bodies)
    answers = [each["answer"]["json"] for each in agent if each["path"].endswith("/frames")]
    assert {answer["attempt"] for answer in answers} == {1, 2}

"""What an agent, a user and a job in JSON of version 0.1 send is answered as it was then."""

import pytest

from tests.compat.wire import Mapping, load, replay

pytestmark = pytest.mark.timeout(300)


def test_recorded_exchanges_are_answered_as_before(serve, tmp_path):
    with serve(f"sqlite:///{tmp_path}/collector.db") as url:
        assert replay(url, load("wire.json.gz"), Mapping()) == []


def test_the_recording_holds_what_an_agent_can_send():
    exchanges = load("wire.json.gz")
    agent = [each for each in exchanges if each["headers"]["user-agent"] == "stabilizer-agent"]
    paths = {each["path"].partition("?")[0].rpartition("/")[2] for each in agent}
    assert {"runs", "frames", "heartbeat", "next", "result"} <= paths
    bodies = [each["body"] for each in agent if each["path"].endswith("/frames")]
    assert all("base64" in body for body in bodies)
    answers = [each["answer"]["json"] for each in agent if each["path"].endswith("/frames")]
    assert {answer["attempt"] for answer in answers} == {1, 2}

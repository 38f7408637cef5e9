"""Events of changes over real sockets, with uvicorn and a job that reports."""

import asyncio
import json
import socket
import time
from contextlib import contextmanager

import httpx
import pytest

from stabilizer.collector.services.change_feed import Audience

NOTE = {"reason": "looked at the curves"}
SNAPSHOT = {"id": "s10", "attempt": 1, "step": 10, "finite": True}


class Stream:
    """Reads events one by one."""

    def __init__(self, response):
        self.response = response
        self.lines = response.iter_lines()
        self.hello = self.next("hello")

    def next(self, name="change"):
        fields = {}
        for line in self.lines:
            if line:
                key, _, value = line.partition(": ")
                fields[key] = value
            elif fields.pop("", None) is None:  # else a comment
                break
        assert fields["event"] == name
        return json.loads(fields["data"])

    def until(self, is_it):
        """Read until an event that it is; return all that were read."""
        seen = [self.next()]
        while not is_it(seen[-1]):
            seen.append(self.next())
        return seen


@pytest.fixture
def follow(server):
    @contextmanager
    def opened(**params):
        path = "/api/v1/events"
        with server.client.stream("GET", path, params=params) as response:
            assert response.status_code == 200
            yield Stream(response)

    return opened


@pytest.fixture
def job(server, make_job):
    job = make_job(server.client)
    assert job.register().status_code == 201
    return job


def test_the_answer_is_a_stream_that_nobody_may_keep_back(follow):
    with follow() as stream:
        headers = stream.response.headers
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-cache"
        assert len(stream.hello["start_id"]) == 32


def test_frames_are_reported_with_the_step_and_wake_no_job(follow, job):
    with follow() as stream:
        job.send([1, 2, 3])
        event = stream.next()
    assert (event["run_id"], event["frames"], event["step"]) == (job.run_id, True, 3)
    assert not event["decisions"]  # whatever wakes a job is a decision as well


def test_a_batch_that_comes_twice_is_reported_once(follow, job):
    with follow() as stream:
        body = job.body([1, 2])
        job.post(body)
        assert stream.next()["frames"]
        assert job.post(body).json()["duplicate"]
        job.client.patch(job.path, json={"mode": "observe", **NOTE})
        seen = stream.until(lambda event: event["decisions"])
    assert [event["frames"] for event in seen] == [False]


def test_a_refused_batch_is_not_reported(follow, job):
    with follow() as stream:
        assert job.post(b"nonsense").status_code == 422
        job.send([1])
        assert stream.next()["version"] == 2  # after the registration


@pytest.mark.parametrize(
    "act",
    [
        lambda job: job.client.patch(job.path, json={"mode": "observe", **NOTE}),
        lambda job: job.command({"kind": "pause"}),
        lambda job: job.send([], snapshots=[SNAPSHOT]),
        lambda job: job.send([], markers=[{"kind": "phase_change", "step": 0, "text": "warm-up"}]),
        lambda job: job.client.post(f"{job.path}/heartbeat", json={"attempt": 1, "step": 9}),
        lambda job: job.client.post(
            f"{job.path}/heartbeat", json={"attempt": 1, "step": 0, "state": "paused"}
        ),
        lambda job: job.client.post(
            f"{job.path}/catalogs", json={"catalogs": [{"series": [{"metric": "accuracy"}]}]}
        ),
        lambda job: job.register(),
    ],
)
def test_what_pages_show_is_reported(follow, job, act):
    with follow(run_id=job.run_id) as stream:
        assert act(job).status_code in (200, 201)
        event = stream.next()
    assert (event["run_id"], event["decisions"], event["frames"]) == (job.run_id, True, False)


def test_a_heartbeat_that_says_nothing_new_is_not_reported(follow, job):
    with follow() as stream:
        job.client.post(f"{job.path}/heartbeat", json={"attempt": 1, "step": 0})
        job.send([1])
        assert stream.next()["version"] == 2


def test_a_snapshot_that_becomes_healthy_is_reported(follow, job):
    job.send(range(1, 11), snapshots=[SNAPSHOT])
    with follow() as stream:
        quiet = job.send([11]).json()["healthy_snapshots"]
        first = stream.next()
        healthy = job.send(range(12, 400)).json()["healthy_snapshots"]
        second = stream.next()
    assert (quiet, first["decisions"]) == ([], False)
    assert (healthy, second["decisions"], second["frames"]) == (["s10"], True, True)


def test_alerts_that_begin_are_reported(follow, job):
    job.send(range(1, 50))
    with follow() as stream:
        job.send([50], [[float("nan"), 1.0]])
        assert stream.until(lambda event: event["decisions"])


def test_the_switch_and_silences_are_reported_to_followers_of_one_run_as_well(follow, job):
    client = job.client
    with follow(run_id=job.run_id) as stream:
        client.put("/api/v1/control", json={"disarmed": False, **NOTE})
        first = stream.until(lambda event: event["run_id"] is None)[-1]
        silence = {"rule": "*", "run_id": job.run_id, "until_step": 99, **NOTE}
        made = client.post("/api/v1/silences", json=silence).json()
        second = stream.until(lambda event: event["run_id"] is None)[-1]
        client.delete(f"/api/v1/silences/{made['id']}", params=NOTE)
        third = stream.until(lambda event: event["run_id"] is None)[-1]
    assert [event["version"] for event in (first, second, third)] == [1, 2, 3]
    assert all(event["decisions"] and not event["frames"] for event in (first, second, third))


def test_a_deleted_run_is_reported_to_its_followers(follow, job):
    job.client.post(f"{job.path}/heartbeat", json={"attempt": 1, "step": 5, "state": "finished"})
    with follow(run_id=job.run_id) as stream:
        assert job.client.delete(job.path, params=NOTE).status_code == 204
        event = stream.next()
    assert (event["decisions"], event["step"]) == (True, 5)


def test_another_run_is_not_reported_to_followers_of_one(follow, job, make_job):
    other = make_job(job.client)
    other.register(key="other")
    with follow(run_id=job.run_id) as stream:
        other.send([1])
        job.send([1, 2])
        event = stream.next()
    assert (event["run_id"], event["step"]) == (job.run_id, 2)


def test_an_unknown_run_cannot_be_followed(server, refused):
    answer = server.client.get("/api/v1/events", params={"run_id": "nothing"})
    refused(answer, 404, "unknown_run")


def test_an_unknown_field_is_refused(server, refused):
    refused(server.client.get("/api/v1/events", params={"run": "a"}), 422, "invalid_input")


def test_the_end_of_the_server_ends_streams_without_waiting(server, follow):
    with follow() as stream, follow(run_id=server.run()) as other:
        began = time.monotonic()
        server.stop()
        for ending in (stream, other):
            for line in ending.lines:  # what was under way, then the end of the body
                assert "error" not in line
    assert time.monotonic() - began < 4  # uvicorn would have cut them off after 5


def test_who_hangs_up_is_forgotten(server):
    with socket.create_connection(server.listener.getsockname()[:2]) as raw:
        raw.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        server.wait_for_streams(1)
        assert "stabilizer_event_streams 1.0" in server.client.get("/metrics").text
    server.wait_for_streams(0)


def test_who_does_not_read_costs_nothing_and_hears_the_last_state(server, job):
    with socket.create_connection(server.listener.getsockname()[:2], timeout=20) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        server.wait_for_streams(1)
        for step in range(1, 200):
            assert job.send([step]).status_code == 200
        received = b""
        while b'"step":199' not in received:
            received += raw.recv(2**16)
    assert received.count(b"event: change") < 199


def test_two_hundred_pages_hear_of_a_change_and_leave_threads_free(server, job):
    async def page(client, ready, told):
        async with client.stream("GET", "/api/v1/events") as response:
            async for line in response.aiter_lines():
                if line == "event: hello":
                    ready.release()
                if line.startswith("data: ") and job.run_id in line:
                    told.append(json.loads(line.removeprefix("data: "))["step"])
                    return

    async def scenario():
        limits = httpx.Limits(max_connections=300)
        async with httpx.AsyncClient(
            base_url=server.url, timeout=60, trust_env=False, limits=limits
        ) as client:
            ready, told = asyncio.Semaphore(0), []
            pages = [asyncio.create_task(page(client, ready, told)) for _ in range(200)]
            for _ in pages:
                await ready.acquire()
            streams = server.feed.num_listeners(Audience.PAGE)
            other = await client.get(f"/api/v1/runs/{job.run_id}")  # needs a thread of the pool
            await asyncio.to_thread(job.send, [1, 2])
            await asyncio.gather(*pages)
            return streams, other.status_code, told

    streams, status, told = asyncio.run(scenario())
    assert (streams, status, told) == (200, 200, [2] * 200)
    server.wait_for_streams(0)

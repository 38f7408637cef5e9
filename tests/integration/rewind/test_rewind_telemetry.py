"""The job and its collector: commands over the real reporter, and no harm from a bad collector."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from functools import partial
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader

from stabilizer.agent.integrations import job as job_module
from stabilizer.agent.telemetry.http import HttpResponse
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.protocol.batches import BatchAnswer, Marker, MarkerKind, SamplingPlan
from stabilizer.protocol.commands import CommandResult, RollbackParameters, SnapshotTarget
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.frames import decode_batch
from stabilizer.protocol.message import PROTOCOL_VERSION
from stabilizer.protocol.runs import RunRegister, RunRegistered


def loader(kit):
    return DataLoader(kit.Points(), batch_size=4, shuffle=True)


class Collector:
    """Answers like a collector, in memory; orders one rollback as soon as a snapshot is known."""

    def __init__(self, kit):
        self.kit = kit
        self.registered = None
        self.batches = []
        self.frames = {}
        self.starts = {}
        self.results = []
        self.states = []
        self.commands = []
        self.snapshot = None
        self.may_order = threading.Event()
        self.has_ordered = threading.Event()
        self.has_result = threading.Event()

    def request(self, request):
        path = request.path.split("?")[0]
        if path.endswith("/runs"):
            self.registered = RunRegister.model_validate_json(request.body)
            answer = RunRegistered(
                run_id="run", attempt=1, plan=SamplingPlan(), mode=Mode.AUTO,
                protocol_version=PROTOCOL_VERSION,
            )  # fmt: skip
            return HttpResponse(201, answer.model_dump_json().encode())
        if path.endswith("/result"):
            self.results.append(CommandResult.model_validate_json(request.body))
            self.commands = []
            self.has_result.set()
            return HttpResponse(200, b"{}")
        if path.endswith("/catalogs"):
            return HttpResponse(200, b"[]")
        if path.endswith("/heartbeat"):
            self.states.append(json.loads(request.body)["state"])
        attempt_id, sequence = self.registered.attempt_id, -1
        if path.endswith("/frames"):
            batch = decode_batch(request.body)
            attempt_id, sequence = batch.header.attempt_id, batch.header.sequence
            self._take(batch)
        answer = BatchAnswer(
            attempt=1,
            attempt_id=attempt_id,
            accepted_sequence=sequence,
            commands=tuple(self.commands),
        )
        return HttpResponse(200, answer.model_dump_json().encode())

    def close(self):
        pass

    def _take(self, batch):
        header = batch.header
        self.starts[header.attempt_id] = header.attempt_start
        for block in batch.blocks:
            for step in block.steps.tolist():
                self.frames.setdefault(header.attempt_id, []).append(step)
        taken = [info for info in header.snapshots or () if info.step == 5]
        self.snapshot = self.snapshot or (taken[0] if taken else None)
        if self.snapshot and self.may_order.is_set() and not self.has_ordered.is_set():
            self._order(self.snapshot)

    def _order(self, info):
        # As the real one numbers them: other jobs have been here before.
        target = SnapshotTarget(
            snapshot_id=info.id, attempt=3, attempt_id=info.attempt_id, step=info.step
        )
        job = SimpleNamespace(attempt=1, _attempt_ids=[info.attempt_id])
        self.commands = [self.kit.command(job, RollbackParameters(target=target))]
        self.has_ordered.set()


def test_a_command_comes_over_the_reporter_and_its_result_goes_back(kit, monkeypatch):
    collector = Collector(kit)
    monkeypatch.setattr(job_module, "_CLOSE_SECONDS", 20.0)  # until everything is delivered

    def wait(job):
        # The boundary after this step finds the command that the sender thread fetches now.
        collector.may_order.set()
        job.marker(Marker(kind=MarkerKind.PHASE_CHANGE, step=9))
        assert job.inbox.wait(30)
        return []

    make = partial(loader, kit)
    reference = kit.train(make, watched=False)
    ran = kit.train(
        make,
        plan={9: wait},
        watcher_options={
            "transport": collector,
            "reporting": ReporterSettings(spool_bytes=0, linger_seconds=0.01),
        },
    )
    assert collector.has_result.wait(30)
    kit.assert_same_from(reference, ran, 5, kit.returned_at(ran)[-1])
    (result,) = collector.results
    assert result.state == "applied"
    assert (result.read_back.step, result.applied_step) == (5, 9)
    first, second = collector.starts
    assert (first, second) == (collector.registered.attempt_id, result.read_back.attempt_id)
    start = collector.starts[second]
    assert (start.from_step, start.parent_id, start.reason) == (5, first, "rollback")
    assert start.command_id == result.command_id
    assert set(collector.frames[first]) == set(range(1, 10))
    assert set(collector.frames[second]) == set(range(6, 25))
    assert collector.registered.world_size == 1
    assert collector.registered.global_batch == 8
    assert collector.states[-1] == "finished"


class _Bad(socketserver.BaseRequestHandler):
    """A server that takes a connection and answers as its `mood` says."""

    def handle(self):
        try:
            self.request.recv(65536)
            if self.server.mood == "hangs":
                self.server.released.wait(60)
                return
            self.request.sendall(self.server.mood)
        except OSError:
            return


MOODS = {
    "hangs": "hangs",
    "status 500": b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops",
    "not http": b"\x00\x01\x02 nonsense\r\n\r\n",
    "not json": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<html>hi!",
    "cut off": b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{",
}


@pytest.fixture
def bad_server():
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Bad)
    server.daemon_threads = True
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hurried():
    return ReporterSettings(register_wait_seconds=0.2, request_timeout_seconds=0.5, spool_bytes=0)


UNDISTURBED = []
"""One run of an epoch without the agent, shared by the tests."""


def undisturbed(kit):
    if not UNDISTURBED:
        UNDISTURBED.append(kit.train(partial(loader, kit), watched=False, max_epochs=1))
    return UNDISTURBED[0]


@pytest.mark.parametrize("mood", MOODS)
def test_a_bad_collector_changes_no_bit_of_the_training(kit, bad_server, hurried, mood):
    bad_server.mood = MOODS[mood]
    make = partial(loader, kit)
    watched = kit.train(
        make,
        max_epochs=1,
        watcher_options={
            "url": f"http://127.0.0.1:{bad_server.server_address[1]}",
            "transport": None,
            "reporting": hurried,
        },
    )
    kit.assert_same_from(undisturbed(kit), watched, 0, 0)


def test_a_closed_port_changes_no_bit_of_the_training(kit, hurried):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    make = partial(loader, kit)
    watched = kit.train(
        make,
        max_epochs=1,
        watcher_options={
            "url": f"http://127.0.0.1:{port}", "transport": None, "reporting": hurried
        },
    )  # fmt: skip
    kit.assert_same_from(undisturbed(kit), watched, 0, 0)

"""Whatever the collector does, training goes on, and what was not dropped arrives exactly once."""

import logging
import os
import random
import subprocess
import sys
import textwrap
import threading
import uuid

import numpy as np
import pytest
import torch

from stabilizer.protocol.batches import AttemptStart
from stabilizer.protocol.runs import RunState

TOKEN = "a-token-nobody-may-read"


def hang(server, connection):
    server.released.wait()


def answer_500(server, connection):
    connection.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 15\r\n\r\n<html>sorry</ht")


def send_garbage(server, connection):
    connection.sendall(bytes(range(256)) * 40)


def send_endless_headers(server, connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-Again: and again\r\n" * 100)


def send_endless_line(server, connection):
    while True:
        connection.sendall(b"H" * 65536)


def send_endless_body(server, connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b" " * 65536)


def send_endless_continues(server, connection):
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def send_wrong_json(server, connection):
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"run_id": null}')


def send_html(server, connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>")


def close_at_once(server, connection):
    pass


def close_mid_answer(server, connection):
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"attempt": 1, ')


def break_a_chunk(server, connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")


def drip(server, connection):
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 100_000:
        connection.sendall(bytes([byte]))
        if server.released.wait(0.01):
            return


def redirect(server, connection):
    connection.sendall(
        b"HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    )


def refuse_token(server, connection):
    echo = f'{{"title":"no","status":401,"code":"unauthenticated","detail":"bad {TOKEN}"}}'
    head = f"HTTP/1.1 401 No\r\nContent-Length: {len(echo)}\r\n\r\n"
    connection.sendall((head + echo).encode())


BEHAVIOURS = [
    hang,
    answer_500,
    send_garbage,
    send_endless_headers,
    send_endless_line,
    send_endless_body,
    send_endless_continues,
    send_wrong_json,
    send_html,
    close_at_once,
    close_mid_answer,
    break_a_chunk,
    drip,
    redirect,
    refuse_token,
]


def expect_all(server, collector, attempt, steps):
    expected = [(attempt, step) for step in steps]
    server.wait_for(lambda: len(collector.steps) >= len(expected))
    assert collector.steps == expected


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
def test_bad_from_the_start_then_good(behaviour, server, collector, kit, make_reporter, caplog):
    server.become(behaviour)
    reporter = make_reporter(token=TOKEN)
    reporter.start()
    for step in range(500):
        reporter.put(kit.Pending(step))
    seen = server.num_requests
    server.wait_for(lambda: server.num_requests >= seen + 3)
    assert not reporter.connected
    for step in range(500, 1000):
        reporter.put(kit.Pending(step))
    server.become(None)
    expect_all(server, collector, 1, range(1000))
    assert reporter.health.send_failures > 0
    assert reporter.health.frames_dropped == 0
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
def test_good_then_bad_then_good(behaviour, server, collector, kit, make_reporter):
    reporter = make_reporter(token=TOKEN)
    reporter.start()
    for step in range(200):
        reporter.put(kit.Pending(step))
    server.wait_for(lambda: len(collector.steps) >= 200)
    server.become(behaviour)
    for step in range(200, 600):
        reporter.put(kit.Pending(step))
    seen = server.num_requests
    server.wait_for(lambda: server.num_requests >= seen + 3)
    server.become(None)
    expect_all(server, collector, 1, range(600))
    assert reporter.health.frames_dropped == 0


def test_refused_connections_then_good(server, collector, kit, make_reporter):
    server.refuse()
    reporter = make_reporter()
    reporter.start()
    for step in range(1000):
        reporter.put(kit.Pending(step))
    server.listen()
    expect_all(server, collector, 1, range(1000))


def test_puts_return_while_the_collector_holds_one_request_for_ever(server, kit, make_reporter):
    server.become(hang)
    reporter = make_reporter(request_timeout_seconds=3600.0, buffer_steps=1000)
    reporter.start()
    server.wait_for(lambda: server.num_requests == 1)
    for step in range(50_000):
        reporter.put(kit.Pending(step))
    reporter.begin_attempt(uuid.uuid4().hex, AttemptStart(from_step=7))
    reporter.result(kit.make_result())
    reporter.set_snapshots(())
    reporter.set_state(RunState.PAUSED, 7)
    # The sender has been in that one request all the time: nothing above waited for it.
    assert server.num_requests == 1
    assert reporter.health.frames_dropped == 49_000


def test_what_was_dropped_is_the_oldest_and_counted(server, collector, kit, make_reporter):
    server.become(hang)
    reporter = make_reporter(request_timeout_seconds=3600.0, buffer_steps=1000)
    reporter.start()
    server.wait_for(lambda: server.num_requests == 1)
    for step in range(3000):
        reporter.put(kit.Pending(step))
    server.become(None)
    expect_all(server, collector, 1, range(2000, 3000))
    assert reporter.health.frames_dropped == 2000


def test_unclear_answers_store_nothing_twice(server, collector, kit, make_reporter):
    """Every second batch is stored, and its answer never arrives."""
    reporter = make_reporter(poison_tries=1000)
    reporter.start()
    count = 0

    def lose(request):
        nonlocal count
        count += 1
        if count % 2 and request.path.endswith("frames"):
            collector._frames(request.body)
            return kit.HttpResponse(502, b"")
        return None

    collector.faults.append(lose)
    for step in range(1000):
        reporter.put(kit.Pending(step))
    expect_all(server, collector, 1, range(1000))
    assert reporter.health.send_failures > 10


def test_job_that_ends_leaves_the_rest_to_the_next(server, collector, kit, make_reporter):
    server.refuse()
    first = make_reporter()
    first.start()
    for step in range(300):
        first.put(kit.Pending(step))
    first.begin_attempt(uuid.uuid4().hex, AttemptStart(from_step=100))
    first.put(kit.Pending(101))
    first.close(RunState.FAILED, timeout_seconds=10.0)
    server.listen()
    second = make_reporter(register=kit.make_register(start_step=50))
    second.start()
    second.put(kit.Pending(51))
    server.wait_for(lambda: len(collector.steps) == 302)
    # The new process may be idle for a moment before its first frame: only then comes the rest.
    steps = [[step for found, step in collector.steps if found == number] for number in (1, 2, 3)]
    assert steps == [[51], list(range(300)), [101]]
    assert first.health.frames_dropped == 0


def test_close_gives_up_on_a_collector_that_hangs(server, kit, make_reporter, settings):
    reporter = make_reporter(request_timeout_seconds=3600.0)
    reporter.start()
    server.become(hang)
    reporter.put(kit.Pending(1))
    seen = server.num_requests
    server.wait_for(lambda: server.num_requests > seen)
    reporter.close(RunState.FINISHED, timeout_seconds=1.0)
    reporter._thread.join(30.0)
    assert not reporter._thread.is_alive()
    assert list(settings.spool_directory.rglob("*.spool"))
    assert reporter.health.frames_dropped == 0


def test_close_tells_the_end(server, collector, kit, make_reporter):
    reporter = make_reporter()
    reporter.start()
    reporter.put(kit.Pending(1))
    reporter.close(RunState.FAILED, timeout_seconds=30.0)
    assert collector.heartbeats[-1].state is RunState.FAILED
    assert collector.steps == [(1, 1)]
    reporter.put(kit.Pending(2))
    reporter.close(RunState.FINISHED)
    assert collector.heartbeats[-1].state is RunState.FAILED


def test_interpreter_that_dies_without_close_does_not_hang(server, settings):
    server.become(hang)
    code = f"""
        from pathlib import Path
        import numpy as np
        from stabilizer.agent.telemetry.reporter import Reporter
        from stabilizer.agent.telemetry.settings import ReporterSettings
        from stabilizer.clock import SystemClock
        from stabilizer.protocol.frames import FrameBlock
        from stabilizer.protocol.runs import RunRegister
        from stabilizer.protocol.series import Catalog
        catalog = Catalog.of(["loss"])
        class Frames:
            def blocks(self):
                values = np.ones((1, 1), np.float32)
                return [(catalog, FrameBlock(catalog.id, np.array([1]), np.array([1.0]), values))]
        settings = ReporterSettings(
            spool_directory=Path({str(settings.spool_directory)!r}), request_timeout_seconds=3600.0,
            register_wait_seconds=0.1, exit_flush_seconds=3.0,
        )
        register = RunRegister(protocol_version=1, name="dying")
        reporter = Reporter({server.url!r}, register, token=None, clock=SystemClock(),
                            settings=settings, on_answer=print)
        reporter.start()
        reporter.put(Frames())
        print("trained")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "trained\n"
    assert list(settings.spool_directory.rglob("*.spool"))


def test_forked_child_reports_nothing(server, collector, kit, make_reporter):
    reporter = make_reporter()
    reporter.start()
    server.wait_for(lambda: collector.registers)
    child = os.fork()
    if child == 0:
        reporter.put(kit.Pending(99))
        reporter.set_state(RunState.FAILED, 99)
        reporter.close(RunState.FAILED)
        os._exit(0 if threading.active_count() == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    reporter.put(kit.Pending(1))
    reporter.close(RunState.FINISHED, timeout_seconds=30.0)
    assert collector.steps == [(1, 1)]
    assert [beat.state for beat in collector.heartbeats] == [RunState.FINISHED]


def test_random_state_of_the_job_is_untouched(server, kit, make_reporter):
    def states():
        numpy_state = np.random.get_state()  # noqa: NPY002  the state that jobs use
        return random.getstate(), str(numpy_state), torch.get_rng_state().tolist()

    before = states()
    server.become(answer_500)
    reporter = make_reporter()
    reporter.start()
    for step in range(100):
        reporter.put(kit.Pending(step))
    server.wait_for(lambda: server.num_requests > 20)
    assert states() == before


def test_losses_are_the_same_bit_for_bit(server, kit, make_reporter):
    def train(report):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
        optimizer = torch.optim.AdamW(model.parameters())
        losses = []
        for step in range(50):
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            report(kit.Pending(step))
        return losses

    alone = train(lambda frames: None)
    server.become(drip)
    reporter = make_reporter()
    reporter.start()
    assert train(reporter.put) == alone


def test_paused_job_hears_resume_at_once(server, collector, kit, make_reporter):
    """What a poll brings comes through, and what the job says breaks the next one off."""
    heard = threading.Event()
    reporter = make_reporter(
        on_answer=lambda answer: heard.set() if answer.healthy_snapshots else None,
        request_timeout_seconds=3600.0,
        poll_wait_seconds=3600.0,
        register_wait_seconds=30.0,
        token=None,
        register=kit.make_register(heartbeat_seconds=3600.0),
    )
    reporter.start()
    polled = threading.Event()
    plain = collector.answer

    def answer(attempt, **kwargs):
        response = plain(attempt, **kwargs)
        body = response.body.replace(b'"healthy_snapshots":[]', b'"healthy_snapshots":["s1"]')
        return kit.HttpResponse(200, body) if polled.is_set() else response

    collector.answer = answer

    def note(request):
        if "commands/next" in request.path:
            polled.set()

    collector.faults.append(note)
    reporter.set_state(RunState.PAUSED, 3)
    assert heard.wait(60)
    server.become(hang)
    seen = server.num_requests
    server.wait_for(lambda: server.num_requests > seen)
    server.behaviour = None
    reporter.result(kit.make_result("c1"))
    reporter.set_state(RunState.RUNNING, 3)
    server.wait_for(lambda: collector.results and collector.heartbeats[-1].state == "running")


def test_token_is_sent_and_never_shown(server, collector, kit, make_reporter, caplog):
    caplog.set_level(logging.DEBUG)
    server.become(refuse_token)
    reporter = make_reporter(token=TOKEN, refused_retry_seconds=0.01)
    reporter.start()
    server.wait_for(lambda: server.num_requests > 5)
    assert server.headers[0]["authorization"] == f"Bearer {TOKEN}"
    assert "unauthenticated" in caplog.text
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(vars(reporter))

"""The agent's sender and the real collector: the app, its database, a socket between them."""

import os
import socket
import threading
import time
import uuid
from dataclasses import replace

import pytest
import uvicorn

from stabilizer.agent.telemetry.reporter import Reporter
from stabilizer.clock import SystemClock
from stabilizer.collector.api.app import create_app
from stabilizer.collector.services.container import build_services
from stabilizer.protocol.batches import AttemptStart, MarkerKind, SnapshotInfo
from stabilizer.protocol.commands import PauseParameters, ResumeParameters
from stabilizer.protocol.queries import CommandCreate, SeriesQuery
from stabilizer.protocol.runs import RunState, SchedulerJob
from stabilizer.settings import CollectorSettings

PATIENCE_SECONDS = 40.0


class Heard:
    """Keeps the answers; tells when something in them is true."""

    def __init__(self):
        self.answers = []
        self._changed = threading.Condition()

    def __call__(self, answer):
        with self._changed:
            self.answers.append(answer)
            self._changed.notify_all()

    def wait_for(self, condition):
        with self._changed:
            assert self._changed.wait_for(
                lambda: any(condition(answer) for answer in self.answers), PATIENCE_SECONDS
            )

    def command(self, kind):
        self.wait_for(lambda answer: any(item.kind == kind for item in answer.commands))
        return next(
            item for answer in self.answers for item in answer.commands if item.kind == kind
        )


@pytest.fixture
def services(tmp_path):
    settings = CollectorSettings(
        database_url=f"sqlite:///{tmp_path / 'collector.db'}", tokens=(), sweep_seconds=60
    )
    services = build_services(settings, SystemClock())
    yield services
    services.close()


@pytest.fixture
def serve(services):
    """Serve the app on a port, until told to stop; may be called again."""
    running = []

    def start(port=0):
        listener = socket.create_server(("127.0.0.1", port))
        port = listener.getsockname()[1]
        settings = CollectorSettings(host="127.0.0.1", port=port, tokens=(), sweep_seconds=60)
        app = create_app(settings, SystemClock(), services)
        config = uvicorn.Config(app, log_level="warning", lifespan="on")
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def stop():
            server.should_exit = True
            thread.join()
            listener.close()

        running.append(stop)
        return port, stop

    yield start
    for stop in running:
        stop()


@pytest.fixture
def make_reporter(settings, kit):
    made = []

    def make(port, heard, wait_seconds=PATIENCE_SECONDS, poll_seconds=20.0, **changes):
        reporter = Reporter(
            f"http://127.0.0.1:{port}",
            kit.make_register(**changes),
            token=None,
            clock=SystemClock(),
            settings=replace(
                settings,
                register_wait_seconds=wait_seconds,
                request_timeout_seconds=30.0,
                poll_wait_seconds=poll_seconds,
            ),
            on_answer=heard,
        )
        made.append(reporter)
        return reporter

    yield make
    for reporter in made:
        reporter.close(RunState.FINISHED, PATIENCE_SECONDS)


def read_steps(services, run_id):
    query = SeriesQuery(series=("loss",))
    return sorted(
        (data.attempt, step) for data in services.queries.read(run_id, query) for step in data.steps
    )


def wait_for_state(services, run_id, state):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while services.runs.get(run_id).state is not state:
        assert time.monotonic() < deadline
        os.sched_yield()


def test_frames_attempts_and_the_end_arrive(serve, services, make_reporter, kit):
    port, _ = serve()
    first = uuid.uuid4().hex
    reporter = make_reporter(port, Heard(), attempt_id=first)
    reporter.start()
    for step in range(1, 101):
        reporter.put(kit.Pending(step))
    reporter.set_snapshots(
        [SnapshotInfo(id="s1", attempt=1, attempt_id=first, step=50, finite=True)]
    )
    start = AttemptStart(from_step=50, parent_id=first, reason=MarkerKind.ROLLBACK)
    reporter.begin_attempt(uuid.uuid4().hex, start)
    for step in range(51, 61):
        reporter.put(kit.Pending(step))
    reporter.close(RunState.FINISHED, PATIENCE_SECONDS)
    run = services.runs.get(reporter.run_id)
    assert [(a.number, a.parent, a.from_step) for a in run.attempts] == [(1, None, 0), (2, 1, 50)]
    assert run.attempt == 2
    assert run.state is RunState.FINISHED
    expected = [(1, step) for step in range(1, 101)] + [(2, step) for step in range(51, 61)]
    assert read_steps(services, reporter.run_id) == expected
    assert reporter.health.send_failures == 0


def test_collector_that_is_gone_for_a_while_loses_nothing(serve, services, make_reporter, kit):
    port, stop = serve()
    reporter = make_reporter(port, Heard())
    reporter.start()
    for step in range(1, 51):
        reporter.put(kit.Pending(step))
    stop()
    for step in range(51, 301):
        reporter.put(kit.Pending(step))
    serve(port)
    reporter.close(RunState.FINISHED, PATIENCE_SECONDS)
    assert read_steps(services, reporter.run_id) == [(1, step) for step in range(1, 301)]


def test_job_that_never_reached_the_collector_is_told_by_the_next(
    serve, services, make_reporter, kit
):
    port, stop = serve()
    stop()
    first = make_reporter(port, Heard(), wait_seconds=0.05)
    first.start()
    for step in range(1, 21):
        first.put(kit.Pending(step))
    first.close(RunState.FAILED, 5.0)
    serve(port)
    second = make_reporter(port, Heard(), start_step=10)
    second.start()
    second.put(kit.Pending(11))
    second.close(RunState.FINISHED, PATIENCE_SECONDS)
    # Numbered as they arrive: first the job that lives, then what the other one has left.
    expected = [(1, 11), *((2, step) for step in range(1, 21))]
    assert read_steps(services, second.run_id) == expected
    run = services.runs.get(second.run_id)
    assert (run.attempt, [attempt.late for attempt in run.attempts]) == (1, [False, True])


def test_two_live_jobs_of_one_name_are_two_runs_and_both_log_it(serve, make_reporter, kit, caplog):
    port, _ = serve()
    heard = Heard()
    first = make_reporter(port, heard, key="")
    first.start()
    second = make_reporter(port, Heard(), key="")
    second.start()
    assert second.run_id != first.run_id
    first.put(kit.Pending(1))
    heard.wait_for(lambda answer: str(second.run_id) in answer.notice)
    first.close(RunState.FINISHED, PATIENCE_SECONDS)
    assert f"is live as run {first.run_id}" in caplog.text
    assert f"it is run {second.run_id} of its own, with key 'auto-2'" in caplog.text


def test_preempted_job_comes_back_as_the_same_run(serve, services, make_reporter, kit):
    port, _ = serve()
    killed = make_reporter(port, Heard(), key="", scheduler=SchedulerJob(id="slurm::7"))
    killed.start()
    requeued = SchedulerJob(id="slurm::7", restarts=1)
    again = make_reporter(port, Heard(), key="", scheduler=requeued, start_step=4)
    again.start()
    assert again.run_id == killed.run_id
    killed.close(RunState.FAILED, PATIENCE_SECONDS)  # too late: it speaks for a past attempt
    run = services.runs.get(again.run_id)
    assert (run.attempt, run.state) == (2, RunState.RUNNING)


def test_paused_job_hears_resume(serve, services, make_reporter, kit):
    port, _ = serve()
    heard = Heard()
    # A poll is held longer than we are patient: what is heard in time was told at once.
    reporter = make_reporter(port, heard, heartbeat_seconds=3600, poll_seconds=60.0)
    reporter.start()
    reporter.put(kit.Pending(1))
    create = CommandCreate(parameters=PauseParameters(), reason="a look at it")
    services.commands.create(reporter.run_id, create, "person:test")
    reporter.put(kit.Pending(2))
    pause = heard.command("pause")
    reporter.result(kit.make_result(pause.id))
    reporter.set_state(RunState.PAUSED, 2)
    wait_for_state(services, reporter.run_id, RunState.PAUSED)
    create = CommandCreate(parameters=ResumeParameters(), reason="all is well")
    services.commands.create(reporter.run_id, create, "person:test")
    resume = heard.command("resume")
    reporter.result(kit.make_result(resume.id))
    reporter.set_state(RunState.RUNNING, 2)
    reporter.close(RunState.FINISHED, PATIENCE_SECONDS)
    states = [command.state for command in services.commands.list(reporter.run_id)]
    assert states == ["applied", "applied"]

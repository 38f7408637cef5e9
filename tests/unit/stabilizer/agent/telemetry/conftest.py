"""A collector that keeps what it hears, in memory, and a clock that stands still."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from stabilizer.agent.telemetry.attempts import AttemptBook
from stabilizer.agent.telemetry.buffer import Buffer, Context
from stabilizer.agent.telemetry.client import CollectorClient
from stabilizer.agent.telemetry.counters import Counters
from stabilizer.agent.telemetry.http import HttpResponse
from stabilizer.agent.telemetry.sender import Sender
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.errors import TelemetryError
from stabilizer.protocol.batches import BatchAnswer, SamplingPlan
from stabilizer.protocol.commands import CommandResult, CommandState
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.frames import FrameBlock, decode_batch
from stabilizer.protocol.message import Problem
from stabilizer.protocol.runs import CatalogsAdd, Heartbeat, RunRegister, RunRegistered
from stabilizer.protocol.series import Catalog

CATALOG = Catalog.of(["loss", "grad_norm"])
PLAN = SamplingPlan(every=5)
OTHER = Catalog.of(["accuracy"])


class ManualClock:
    """Stands still until told to go on."""

    def __init__(self):
        self.seconds = 1000.0

    def now(self):
        return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self):
        return self.seconds

    def advance(self, seconds):
        self.seconds += seconds


@dataclass
class Pending:
    """The frames of one step."""

    step: int
    catalog: Catalog = CATALOG
    error: Exception | None = None

    def blocks(self):
        if self.error is not None:
            raise self.error
        width = len(self.catalog)
        values = np.full((1, width), self.step, np.float32)
        return [
            (
                self.catalog,
                FrameBlock(
                    self.catalog.id, np.array([self.step]), np.array([float(self.step)]), values
                ),
            )
        ]


@dataclass
class FakeCollector:
    """A transport that is a collector: stores each (attempt, sequence) once, in memory."""

    run_id: str = "run-1"
    newest_attempt: int = 0
    catalogs: set = field(default_factory=set)
    attempts: set = field(default_factory=set)
    stored: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)
    heartbeats: list = field(default_factory=list)
    results: list = field(default_factory=list)
    registers: list = field(default_factory=list)
    faults: list = field(default_factory=list)
    """Asked for each request: an exception to raise, a response to give, or None."""
    loses_answers: bool = False
    plan: SamplingPlan = PLAN

    def request(self, request):
        self.requests.append(request)
        for fault in self.faults:
            outcome = fault(request)
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is not None:
                return outcome
        response = self._route(request)
        if self.loses_answers:
            raise TelemetryError("the answer was lost", code="read_timeout")
        return response

    def close(self):
        pass

    def _route(self, request):
        path = request.path.removeprefix("/api/v1/runs")
        if path == "":
            return self._register(RunRegister.model_validate_json(request.body))
        if not path.startswith(f"/{self.run_id}/"):
            return problem(404, "unknown_run")
        name = path.partition("?")[0].rsplit("/", 1)[1]
        return {
            "catalogs": self._catalogs,
            "frames": self._frames,
            "heartbeat": self._heartbeat,
            "next": lambda _: self.answer(self.newest_attempt),
            "result": self._result,
        }[name](request.body)

    def _catalogs(self, body):
        added = CatalogsAdd.model_validate_json(body).catalogs
        self.catalogs |= {catalog.id for catalog in added}
        return HttpResponse(200, b"[]")

    def _heartbeat(self, body):
        self.heartbeats.append(Heartbeat.model_validate_json(body))
        return self.answer(self.heartbeats[-1].attempt)

    def _result(self, body):
        self.results.append(CommandResult.model_validate_json(body))
        return HttpResponse(200, b"{}")

    def _register(self, message):
        self.registers.append(message)
        self.newest_attempt += 1
        self.attempts.add(self.newest_attempt)
        self.catalogs |= {catalog.id for catalog in message.catalogs}
        answer = RunRegistered(
            run_id=self.run_id,
            attempt=self.newest_attempt,
            plan=self.plan,
            mode=Mode.PROPOSE,
            protocol_version=1,
        )
        return HttpResponse(201, answer.model_dump_json().encode())

    def _frames(self, body):
        batch = decode_batch(body)
        header = batch.header
        if any(block.catalog not in self.catalogs for block in batch.blocks):
            return problem(409, "unknown_catalog")
        if header.attempt not in self.attempts:
            if header.attempt_start is None:
                return problem(409, "unknown_attempt")
            self.attempts.add(header.attempt)
            self.newest_attempt = max(self.newest_attempt, header.attempt)
        key = (header.attempt, header.sequence)
        duplicate = key in self.stored
        self.stored.setdefault(key, batch)
        return self.answer(header.attempt, duplicate=duplicate)

    def answer(self, attempt, *, duplicate=False):
        body = BatchAnswer(
            attempt=max(attempt, 1), accepted_sequence=0, duplicate=duplicate, plan=self.plan
        )
        return HttpResponse(200, body.model_dump_json().encode())

    @property
    def steps(self):
        """(attempt, step) of every stored frame, in the order of storing."""
        return [
            (attempt, int(step))
            for (attempt, _), batch in self.stored.items()
            for block in batch.blocks
            for step in block.steps
        ]

    @property
    def names(self):
        """Last part of every path asked for."""
        return [request.path.partition("?")[0].rsplit("/", 1)[1] for request in self.requests]


def problem(status, code, detail="no", retry_after=None):
    body = Problem(title="no", status=status, code=code, detail=detail).model_dump_json()
    return HttpResponse(status, body.encode(), retry_after)


def gone(request):
    return TelemetryError("nobody there", code="connect_failed")


def make_result(command_id="c1"):
    return CommandResult(command_id=command_id, state=CommandState.APPLIED)


def make_register(**changes):
    values = {"protocol_version": 1, "name": "a run", "key": "7", "catalogs": (CATALOG,)}
    return RunRegister(**(values | changes))


@dataclass
class Desk:
    """A sender without its thread, and everything around it."""

    sender: Sender
    context: Context
    collector: FakeCollector
    clock: ManualClock
    answers: list
    registered: list

    def put(self, *steps, catalog=CATALOG):
        for step in steps:
            self.put_frames(Pending(step, catalog))

    def put_frames(self, frames):
        self.context.buffer.put_frames(frames, self.context.book.local, self.clock.monotonic())

    def note(self, content):
        self.context.buffer.put_note(content, self.context.book.local, self.clock.monotonic())

    def run(self, turns=50):
        """Let the sender work until it would sleep."""
        for _ in range(turns):
            self.sender.turn()
            if self.sender.is_finished or self.sender.pause().seconds > 0:
                return
        raise AssertionError("the sender never rests")

    def later(self, seconds):
        self.clock.advance(seconds)
        self.run()


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def collector():
    return FakeCollector()


@pytest.fixture
def settings(tmp_path):
    return ReporterSettings(spool_directory=tmp_path / "spool", strict=True)


@pytest.fixture
def make_desk(clock, collector, settings):
    """Build a desk; each one is a new process of the same run."""

    made = []

    def make(register=None, settings=settings, transport=collector):
        counters = Counters()
        context = Context(
            settings=settings,
            clock=clock,
            buffer=Buffer(settings.buffer_steps, counters),
            book=AttemptBook(),
            counters=counters,
        )
        answers, registered = [], []

        def on_registered(answer):
            context.book.set_base(answer.attempt)
            registered.append(answer)

        sender = Sender(
            CollectorClient(transport, settings),
            register or make_register(),
            context,
            on_registered=on_registered,
            on_answer=answers.append,
        )
        return Desk(sender, context, collector, clock, answers, registered)

    yield lambda *args, **kwargs: made.append(make(*args, **kwargs)) or made[-1]
    for desk in made:
        desk.sender._spool.close()


@pytest.fixture
def desk(make_desk):
    return make_desk()


@pytest.fixture(scope="session")
def kit():
    """Makers, for tests cannot import from here."""
    return SimpleNamespace(
        CATALOG=CATALOG,
        OTHER=OTHER,
        FakeCollector=FakeCollector,
        ManualClock=ManualClock,
        Pending=Pending,
        gone=gone,
        make_register=make_register,
        make_result=make_result,
        problem=problem,
    )

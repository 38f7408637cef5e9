"""A collector that keeps what it hears, in memory, and a clock that stands still."""

import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from stabilizer.agent.telemetry.client import TelemetryClient
from stabilizer.agent.telemetry.failures import Counters
from stabilizer.agent.telemetry.http import HttpResponse
from stabilizer.agent.telemetry.outbox import Buffer, ReportedAttempt, ReporterContext
from stabilizer.agent.telemetry.reporter import first_attempt
from stabilizer.agent.telemetry.session import Sender
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.agent.telemetry.spool import Record, RecordKind, SessionInfo, Spool
from stabilizer.errors import TelemetryError
from stabilizer.protocol.batches import AttemptStart, BatchAnswer, SamplingPlan
from stabilizer.protocol.commands import CommandResult, CommandState
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.frames import FrameBlock, decode_batch
from stabilizer.protocol.message import PROTOCOL_VERSION, Problem
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
    """A transport that is a collector: stores each (attempt, sequence) once, in memory.

    It numbers attempts as they arrive, like the real one.
    """

    run_id: str = "run-1"
    catalogs: set = field(default_factory=set)
    attempts: list = field(default_factory=list)
    """Ids of the attempts in the order of their arrival."""
    stored: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)
    heartbeats: list = field(default_factory=list)
    results: list = field(default_factory=list)
    registers: list = field(default_factory=list)
    faults: list = field(default_factory=list)
    """Asked for each request: an exception to raise, a response to give, or None."""
    loses_answers: bool = False
    plan: SamplingPlan = PLAN
    notice: str = ""

    def number(self, attempt_id):
        return self.attempts.index(attempt_id) + 1 if attempt_id in self.attempts else 0

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
            "next": lambda _: self.answer((self.attempts or [None])[-1]),
            "result": self._result,
        }[name](request.body)

    def _catalogs(self, body):
        added = CatalogsAdd.model_validate_json(body).catalogs
        self.catalogs |= {catalog.id for catalog in added}
        return HttpResponse(200, b"[]")

    def _heartbeat(self, body):
        self.heartbeats.append(Heartbeat.model_validate_json(body))
        return self.answer(self.heartbeats[-1].attempt_id)

    def _result(self, body):
        self.results.append(CommandResult.model_validate_json(body))
        return HttpResponse(200, b"{}")

    def _register(self, message):
        self.registers.append(message)
        if message.attempt_id not in self.attempts:
            self.attempts.append(message.attempt_id)
        self.catalogs |= {catalog.id for catalog in message.catalogs}
        answer = RunRegistered(
            run_id=self.run_id,
            attempt=self.number(message.attempt_id),
            plan=self.plan,
            mode=Mode.PROPOSE,
            protocol_version=message.protocol_version,
            notice=self.notice,
        )
        return HttpResponse(201, answer.model_dump_json().encode())

    def _frames(self, body):
        batch = decode_batch(body)
        header = batch.header
        if any(block.catalog not in self.catalogs for block in batch.blocks):
            return problem(409, "unknown_catalog")
        if header.attempt_id not in self.attempts:
            if header.attempt_start is None:
                return problem(409, "unknown_attempt")
            self.attempts.append(header.attempt_id)
        key = (self.number(header.attempt_id), header.sequence)
        duplicate = key in self.stored
        self.stored.setdefault(key, batch)
        return self.answer(header.attempt_id, duplicate=duplicate)

    def answer(self, attempt_id, *, duplicate=False):
        body = BatchAnswer(
            attempt=self.number(attempt_id),
            attempt_id=attempt_id,
            accepted_sequence=0,
            duplicate=duplicate,
            plan=self.plan,
            notice=self.notice,
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
    values = {
        "protocol_version": PROTOCOL_VERSION,
        "name": "a run",
        "key": "7",
        "catalogs": (CATALOG,),
        "attempt_id": uuid.uuid4().hex,
    }
    return RunRegister(**(values | changes))


def make_attempt(from_step=0, **start):
    return ReportedAttempt(uuid.uuid4().hex, AttemptStart(from_step=from_step, **start))


def make_record(number, size=100, kind=RecordKind.BATCH):
    return Record(kind, 1, number.to_bytes(4, "little") * (size // 4))


def drain(spool):
    """Take every record out of a spool, or out of one of its files."""
    found = []
    while (head := spool.head()) is not None:
        found.append(head)
        spool.pop()
    return found


@dataclass
class Desk:
    """A sender without its thread, and everything around it."""

    sender: Sender
    context: ReporterContext
    attempt: ReportedAttempt
    collector: FakeCollector
    clock: ManualClock
    answers: list
    registered: list

    def put(self, *steps, catalog=CATALOG):
        for step in steps:
            self.put_frames(Pending(step, catalog))

    def put_frames(self, frames):
        self.context.buffer.put_frames(frames, self.attempt, self.clock.monotonic())

    def event(self, content):
        self.context.buffer.put_event(content, self.attempt, self.clock.monotonic())

    def begin(self, from_step):
        """Begin an attempt as the reporter does."""
        parents = {"parent_id": self.attempt.id, "origin_id": self.context.attempt.id}
        self.attempt = make_attempt(from_step, **parents)
        self.event(self.attempt)

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
        register = register or make_register()
        context = ReporterContext(
            settings=settings,
            clock=clock,
            buffer=Buffer(settings.buffer_steps, counters),
            counters=counters,
            attempt=first_attempt(register),
        )
        answers, registered = [], []
        sender = Sender(
            TelemetryClient(transport, settings),
            register,
            context,
            on_registered=registered.append,
            on_answer=answers.append,
        )
        return Desk(sender, context, context.attempt, collector, clock, answers, registered)

    yield lambda *args, **kwargs: made.append(make(*args, **kwargs)) or made[-1]
    for desk in made:
        desk.sender._spool.close()


@pytest.fixture
def desk(make_desk):
    return make_desk()


@pytest.fixture
def make_spool(settings):
    """Build a spool; each one is a new process of the same run."""
    made = []

    def make(*numbers, key="7", **changes):
        counters = Counters()
        spool = Spool(replace(settings, **changes), "a run", key, counters)
        spool.info = SessionInfo(catalogs=(CATALOG,))
        spool.counters = counters
        made.append(spool)
        for number in numbers:
            spool.append(make_record(number))
        return spool

    yield make
    for spool in made:
        spool.close()


@pytest.fixture(scope="session")
def kit():
    """Makers, for tests cannot import from here."""
    return SimpleNamespace(
        CATALOG=CATALOG,
        OTHER=OTHER,
        FakeCollector=FakeCollector,
        ManualClock=ManualClock,
        Pending=Pending,
        drain=drain,
        gone=gone,
        make_attempt=make_attempt,
        make_record=make_record,
        make_register=make_register,
        make_result=make_result,
        problem=problem,
    )

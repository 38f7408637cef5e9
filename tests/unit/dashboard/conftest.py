"""A manual clock, a browser, and the collector's end of an event stream."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from dash.development.base_component import Component

from dashboard.client import Collector, LiveHub
from stabilizer.protocol.commands import (
    Command,
    CommandResult,
    CommandState,
    ReadBack,
    RollbackParameters,
    SnapshotTarget,
)
from stabilizer.protocol.decisions import (
    Alert,
    AlertState,
    Decision,
    DecisionKind,
    DecisionReason,
    Incident,
    IncidentState,
    Severity,
)
from stabilizer.protocol.queries import AuditAction, AuditEntry, AuditReason
from stabilizer.protocol.views import CommandPreview
from tests.browser import launched

WAIT_SECONDS = 20


class ManualClock:
    """A clock that is advanced by hand."""

    def __init__(self):
        self.at = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def now(self):
        return self.at

    def monotonic(self):
        return self.at.timestamp()

    def advance(self, seconds):
        self.at += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture(scope="module")
def browser():
    """Open for the tests of one file: those of another may run event loops."""
    with launched() as browser:
        yield browser


class Stream(httpx.AsyncByteStream):
    """The body of a response, sent by the test until it ends or aborts it."""

    def __init__(self):
        self.parts = asyncio.Queue()
        self.closed = asyncio.Event()

    def say(self, *texts):
        for text in texts:
            self.parts.put_nowait(text)

    def end(self, error=None):
        self.parts.put_nowait(error)

    async def __aiter__(self):
        while True:
            part = await self.parts.get()
            if part is None:
                return
            if isinstance(part, Exception):
                raise part
            yield part.encode()

    async def aclose(self):
        self.closed.set()


class Wire(httpx.AsyncBaseTransport):
    """A collector's end of every stream: each request waits until the test answers it."""

    def __init__(self):
        self.requests = asyncio.Queue()

    async def handle_async_request(self, request):
        answer = asyncio.get_running_loop().create_future()
        await self.requests.put((request, answer))
        return await answer

    async def accept(self, *texts):
        """Answer the next request with a stream; returns the request and the stream."""
        request, answer = await self.requests.get()
        stream = Stream()
        stream.say(*texts)
        headers = {"content-type": "text/event-stream; charset=utf-8"}
        answer.set_result(httpx.Response(200, headers=headers, stream=stream))
        return request, stream

    async def refuse(self, response):
        """Answer the next request with something else, or with an error."""
        _, answer = await self.requests.get()
        if isinstance(response, Exception):
            answer.set_exception(response)
        else:
            answer.set_result(response)


class Pauses:
    """Waits for the test instead of the time; remembers for how long it should have waited."""

    def __init__(self):
        self.seconds = []
        self.begun = asyncio.Queue()

    async def __call__(self, seconds):
        self.seconds.append(seconds)
        over = asyncio.Event()
        self.begun.put_nowait(over)
        await over.wait()

    async def end(self):
        (await self.begun.get()).set()


class Stage:
    """A hub with its collector, in one event loop."""

    def __init__(self, clock):
        self.clock = clock
        self.wire = Wire()
        self.pauses = Pauses()
        self.collector = Collector("http://collector", transport=self.wire)
        self.hub = LiveHub(self.collector, clock, self.pauses)

    async def updates(self, listener, run_id=None, *, until):
        """Wait until the updates satisfy the condition; return them."""
        found = listener.updates(run_id)
        async with asyncio.timeout(WAIT_SECONDS):
            while not until(found):
                found = await listener.wait(run_id, found, WAIT_SECONDS)
        return found

    async def linked(self, listener, link):
        return await self.updates(listener, until=lambda updates: updates.link is link)


@pytest.fixture
def play(clock):
    """Run a scenario on a stage, and see that nothing is left behind."""

    def run(scenario):
        async def whole():
            stage = Stage(clock)
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    return await scenario(stage)
            finally:
                await stage.hub.close()
                await stage.collector.close()
                assert asyncio.all_tasks() == {asyncio.current_task()}

        return asyncio.run(whole())

    return run


START = datetime(2025, 5, 30, 14, 0, tzinfo=UTC)
TARGET = SnapshotTarget(snapshot_id="a1-200", attempt=1, step=200)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def walk(node: object) -> Iterator[object]:
    """Give every component and text below a component, in the order in which it is read."""
    if isinstance(node, list | tuple):
        for child in node:
            yield from walk(child)
    elif isinstance(node, Component):
        yield node
        yield from walk(getattr(node, "label", None))
        yield from walk(getattr(node, "children", None))
    elif node is not None:
        yield node


@pytest.fixture
def now() -> datetime:
    return at(30)


@pytest.fixture
def minute() -> Callable[[float], datetime]:
    return at


@pytest.fixture
def parts() -> Callable[[object], list[object]]:
    return lambda node: list(walk(node))


@pytest.fixture
def text_of() -> Callable[[object], str]:
    return lambda node: " ".join(str(p) for p in walk(node) if not isinstance(p, Component))


@pytest.fixture
def create_command() -> Callable[..., Command]:
    def create(**override: Any) -> Command:
        fields = {
            "id": "c1",
            "run_id": "r1",
            "attempt": 1,
            "parameters": RollbackParameters(target=TARGET, skip_steps=10),
            "state": CommandState.PROPOSED,
            "reason": "divergence",
            "message": "roll back to step 200, skip the data of 10 steps",
            "incident_id": "i1",
            "issued_step": 312,
            "issued_at": at(10),
            "expires_at": at(40),
        }
        return Command(**(fields | override))

    return create


@pytest.fixture
def create_applied(create_command) -> Callable[..., Command]:
    """A command that was carried out; arguments override its read-back."""

    def create(parameters: Any = None, applied_step: int | None = 314, **read: Any) -> Command:
        fields = {"attempt": 2, "step": 200, "lr": {"0": 3e-4}, "skipped_samples": 640}
        result = CommandResult(
            command_id="c1",
            state=CommandState.APPLIED,
            applied_step=applied_step,
            read_back=ReadBack(**(fields | read)),
        )
        override = {} if parameters is None else {"parameters": parameters}
        return create_command(
            state=CommandState.APPLIED,
            delivered_at=at(13),
            settled_at=at(14),
            result=result,
            **override,
        )

    return create


@pytest.fixture
def create_audit() -> Callable[..., AuditEntry]:
    numbers = iter(range(1, 10_000))

    def create(action: AuditAction, **override: Any) -> AuditEntry:
        number = next(numbers)
        fields = {
            "id": number,
            "at": at(number),
            "run_id": "r1",
            "actor": "policy",
            "action": action,
            "subject": "r1",
            "reason": AuditReason.REPORTED_BY_JOB,
            "message": "",
            "before": None,
            "after": None,
        }
        return AuditEntry(**(fields | override))

    return create


@pytest.fixture
def moved(create_audit) -> Callable[..., AuditEntry]:
    """An audit entry about command c1 going from one state to the next."""

    def create(before: str | None, after: str, **override: Any) -> AuditEntry:
        created = before is None
        action = AuditAction.COMMAND_CREATED if created else AuditAction.COMMAND_CHANGED
        fields = {
            "subject": "c1",
            "reason": AuditReason.SENT_TO_JOB,
            "before": None if created else {"state": before},
            "after": {"state": after},
        }
        return create_audit(action, **(fields | override))

    return create


@pytest.fixture
def create_alert() -> Callable[..., Alert]:
    def create(**override: Any) -> Alert:
        fields = {
            "id": "a1",
            "run_id": "r1",
            "attempt": 1,
            "rule": "loss_diverging",
            "rule_hash": "h",
            "severity": Severity.DIVERGENCE,
            "series": "loss",
            "state": AlertState.FIRING,
            "pending_step": 300,
            "firing_step": 310,
            "value": 4.2,
            "score": 0.04,
            "threshold": 0.03,
        }
        return Alert(**(fields | override))

    return create


@pytest.fixture
def create_incident() -> Callable[..., Incident]:
    def create(*decisions: Decision, **override: Any) -> Incident:
        latest = decisions[-1] if decisions else None
        fields = {
            "id": "i1",
            "run_id": "r1",
            "number": 1,
            "state": IncidentState.OPEN,
            "attempt": 1,
            "first_step": 305,
            "opened_step": 310,
            "severity": Severity.DIVERGENCE,
            "rules": ("loss_jump", "loss_diverging"),
            "decision": DecisionKind.WAIT if latest is None else latest.kind,
            "reason": DecisionReason.MAY_RECOVER if latest is None else latest.reason,
            "decisions": decisions,
            "opened_at": at(8),
        }
        return Incident(**(fields | override))

    return create


@pytest.fixture
def create_preview() -> Callable[..., CommandPreview]:
    def create(**override: Any) -> CommandPreview:
        fields = {
            "parameters": RollbackParameters(target=TARGET, skip_steps=10),
            "attempt": 1,
            "step": 312,
            "steps_lost": 112,
            "seconds_lost": 200.0,
            "skip_steps": 10,
            "skipped_samples": 640,
            "skip_from_sample": 12800,
            "target_healthy": True,
        }
        return CommandPreview(**(fields | override))

    return create

"""`Reporter`: training hands over here, and a daemon thread talks to the collector.

Nothing that training calls here waits for the network or a disk, and nothing raises because of
them. The collector's answers are passed to `on_answer` in the sender thread.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Sequence

from stabilizer.agent.telemetry.client import TelemetryClient
from stabilizer.agent.telemetry.failures import Counters
from stabilizer.agent.telemetry.http import Endpoint, HttpTransport, Transport
from stabilizer.agent.telemetry.outbox import (
    Buffer,
    FrameSource,
    JobEvent,
    JobState,
    ReportedAttempt,
    ReporterContext,
)
from stabilizer.agent.telemetry.session import Ending, Sender
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.clock import Clock
from stabilizer.protocol.batches import (
    AgentHealth,
    AttemptStart,
    BatchAnswer,
    Marker,
    SamplingPlan,
    SnapshotInfo,
)
from stabilizer.protocol.commands import CommandResult
from stabilizer.protocol.runs import RunRegister, RunRegistered, RunState

_logger = logging.getLogger(__name__)
_DEFAULT_SETTINGS = ReporterSettings()
_SENDING_SHARE = 0.8
"""Part of the time at the end that is for the network; the rest is for the disk."""


class Reporter:
    """Reports one process of a run. Public methods belong to the training thread.

    The job names its attempts by ids, which never change; the collector numbers them as they
    arrive.

    In a forked child every method does nothing: threads do not survive a fork, and the parent's
    connection must not be used by the child.

    Args:
        url: The collector's address, http or https.
        register: Registration of this process, with the id of its first attempt.
        token: Bearer token, or None on loopback.
        clock: Source of time.
        transport: Carries requests; None makes an `HttpTransport`.
        settings: Sizes and waits.
        on_answer: Called with every answer, in the sender thread. It must not block.

    Raises:
        ConfigurationError: Address or token is not usable.
    """

    def __init__(  # noqa: PLR0913  all of it is the caller's choice
        self,
        url: str,
        register: RunRegister,
        *,
        token: str | None,
        clock: Clock,
        transport: Transport | None = None,
        settings: ReporterSettings = _DEFAULT_SETTINGS,
        on_answer: Callable[[BatchAnswer], None],
    ) -> None:
        endpoint = Endpoint.parse(url)
        carrier = HttpTransport(endpoint, token, settings) if transport is None else transport
        if register.attempt_id is None:
            register = register.model_copy(update={"attempt_id": uuid.uuid4().hex})
        counters = Counters()
        self._attempt = first_attempt(register)
        self._context = ReporterContext(
            settings=settings,
            clock=clock,
            buffer=Buffer(settings.buffer_steps, counters),
            counters=counters,
            attempt=self._attempt,
        )
        client = TelemetryClient(carrier, settings, secret=token, is_cancelled=self._is_past_end)
        self._sender = Sender(
            client,
            register,
            self._context,
            on_registered=self._take_registration,
            on_answer=self._take_answer,
        )
        self._on_answer = on_answer
        self._run_id: str | None = None
        self._plan = SamplingPlan()
        self._notice = ""
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def start(self) -> None:
        """Start to report; wait for the registration, but never longer than the settings say."""
        if self._is_foreign() or self._thread is not None or self._is_closed:
            return
        self._thread = threading.Thread(target=self._run, name="stabilizer-sender", daemon=True)
        self._thread.start()
        _close_at_exit(self)
        wait = self._context.settings.register_wait_seconds
        if wait > 0 and not self._sender.settled.wait(wait):
            _logger.warning("the run is not registered after %g s; training begins", wait)

    @property
    def run_id(self) -> str | None:
        """Id of the run; None until registered."""
        return self._run_id

    @property
    def plan(self) -> SamplingPlan:
        """The newest sampling plan."""
        return self._plan

    @property
    def connected(self) -> bool:
        """Whether the run is registered and the last exchange succeeded."""
        return self._sender.is_connected

    @property
    def health(self) -> AgentHealth:
        """What was lost, failed or spooled; frames of one step count once."""
        return self._context.counters.health

    def put(self, frames: FrameSource) -> None:
        """Hand over the frames of one step. Never blocks, never raises; the oldest are dropped."""
        if self._takes():
            context = self._context
            context.buffer.put_frames(frames, self._attempt, context.clock.monotonic())

    def marker(self, marker: Marker) -> None:
        """Hand over an event that rules must know."""
        self._put_event(marker)

    def set_snapshots(self, infos: Sequence[SnapshotInfo]) -> None:
        """Report the whole inventory of snapshots."""
        if self._takes():
            context = self._context
            context.buffer.put_snapshots(tuple(infos), context.clock.monotonic())

    def begin_attempt(self, attempt_id: str, start: AttemptStart) -> None:
        """Begin an attempt with the next frames.

        Args:
            attempt_id: Minted by the job.
            start: Where it begins and which attempt it continues.
        """
        if self._takes():
            origin = {"origin_id": self._context.attempt.id}
            self._attempt = ReportedAttempt(attempt_id, start.model_copy(update=origin))
            self._put_event(self._attempt)

    def result(self, result: CommandResult) -> None:
        """Hand over the result of a command; it is kept until delivered."""
        self._put_event(result)

    def set_state(self, state: RunState, step: int, message: str = "") -> None:
        """Report the state of the job; while it is paused the sender polls for commands."""
        if self._takes():
            self._context.buffer.put_state(JobState(state, step, message))

    def close(self, state: RunState, timeout_seconds: float = 5.0) -> None:
        """Send what is left, report how the job ended, and leave the rest in the spool.

        Returns after `timeout_seconds` at the latest, whatever the network and the disk do.
        """
        self._end(state, timeout_seconds)

    def _put_event(self, event: JobEvent) -> None:
        if self._takes():
            context = self._context
            context.buffer.put_event(event, self._attempt, context.clock.monotonic())

    def _end(self, state: RunState | None, timeout_seconds: float) -> None:
        if not self._takes():
            return
        self._is_closed = True
        thread = self._thread
        if thread is None:
            return
        sending = max(0.0, timeout_seconds) * _SENDING_SHARE
        until = self._context.clock.monotonic() + sending
        self._sender.ending = Ending(state, until)
        self._context.buffer.wake()
        if thread is threading.current_thread():
            return  # called by `on_answer`: a thread cannot wait for itself
        thread.join(max(0.0, timeout_seconds))
        if thread.is_alive():
            _logger.warning("the sender is still busy; what it holds may be lost")
        health = self.health
        if health.frames_dropped:
            _logger.warning("%d steps were measured and never reported", health.frames_dropped)

    def _takes(self) -> bool:
        return not self._is_closed and not self._is_foreign()

    def _is_foreign(self) -> bool:
        return os.getpid() != self._pid

    def _is_past_end(self) -> bool:
        return self._sender.is_past_end()

    # In the sender thread.

    def _run(self) -> None:
        sender, buffer = self._sender, self._context.buffer
        is_strict = self._context.settings.strict
        while not sender.is_finished:
            try:
                sender.turn()
            except Exception as error:
                # The agent's only broad clause: a bug of ours must not reach training.
                sender.crashed(error)
                if is_strict:
                    raise
            if not sender.is_finished:
                pause = sender.pause()
                buffer.wait(pause.seconds, pause.wake_at)

    def _take_registration(self, answer: RunRegistered) -> None:
        self._plan = answer.plan
        self._run_id = answer.run_id
        self._log_notice(answer.notice)

    def _take_answer(self, answer: BatchAnswer) -> None:
        self._plan = answer.plan
        self._log_notice(answer.notice)
        self._on_answer(answer)

    def _log_notice(self, notice: str) -> None:
        """Log what the collector reports about the run, once."""
        if notice and notice != self._notice:
            _logger.warning("%s", notice)
        self._notice = notice


def first_attempt(register: RunRegister) -> ReportedAttempt:
    """Return the attempt that a registration begins."""
    attempt_id = str(register.attempt_id)
    parent_id = None if register.resumes is None else register.resumes.attempt_id
    start = AttemptStart(from_step=register.start_step, parent_id=parent_id, origin_id=attempt_id)
    return ReportedAttempt(attempt_id, start)


def _close_at_exit(reporter: Reporter) -> None:
    """Let a dying interpreter send or spool for a moment, without a report of how the job ended."""
    held = weakref.ref(reporter)

    def close() -> None:
        living = held()
        if living is not None:
            living._end(None, living._context.settings.exit_flush_seconds)  # noqa: SLF001  ours

    atexit.register(close)

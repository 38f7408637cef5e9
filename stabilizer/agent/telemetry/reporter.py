"""The agent's mouth and ear: training hands over here, a daemon thread talks to the collector.

Nothing that training calls here waits for the network or a disk, and nothing raises because of
them. What the collector answers is given to `on_answer` in the sender thread.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence

from stabilizer.agent.telemetry.attempts import AttemptBook, SnapshotNumbers, Start
from stabilizer.agent.telemetry.buffer import Buffer, Context, FrameSource, StateChange
from stabilizer.agent.telemetry.client import CollectorClient
from stabilizer.agent.telemetry.counters import Counters
from stabilizer.agent.telemetry.http import Endpoint, HttpTransport, Transport
from stabilizer.agent.telemetry.sender import Ending, Sender
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
"""Part of the time at the end that goes to the network; the rest is for the disk."""


class Reporter:
    """Reports one process of a run. Public methods belong to the training thread.

    In a forked child every method does nothing: threads do not survive a fork, and the parent's
    connection is not the child's to use.

    Args:
        url: The collector's address, http or https.
        register: How this process introduces itself.
        token: Bearer token, or None on loopback.
        clock: Time.
        transport: Carries requests; None makes an `HttpTransport`.
        settings: Sizes and waits.
        on_answer: Told every answer, in the sender thread. It must not block.

    Raises:
        ConfigurationError: Address or token cannot be used.
    """

    def __init__(  # noqa: PLR0913  all of it is the caller's to choose
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
        counters = Counters()
        self._context = Context(
            settings=settings,
            clock=clock,
            buffer=Buffer(settings.buffer_steps, counters),
            book=AttemptBook(),
            counters=counters,
        )
        client = CollectorClient(carrier, settings, secret=token, is_cancelled=self._is_past_end)
        self._sender = Sender(
            client,
            register,
            self._context,
            on_registered=self._take_registration,
            on_answer=self._take_answer,
        )
        self._tell = on_answer
        self._snapshots = SnapshotNumbers()
        self._registered: RunRegistered | None = None
        self._plan = SamplingPlan()
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def start(self) -> None:
        """Begin to report; wait for the registration, but never longer than the settings say."""
        if self._is_foreign() or self._thread is not None or self._is_closed:
            return
        self._thread = threading.Thread(target=self._run, name="stabilizer-sender", daemon=True)
        self._thread.start()
        _close_at_exit(self)
        wait = self._context.settings.register_wait_seconds
        if wait > 0 and not self._sender.settled.wait(wait):
            _logger.warning("the run is not registered after %g s; training begins", wait)

    @property
    def attempt(self) -> int:
        """The present attempt; counted from 1 until the collector has said where to count from."""
        return self._context.book.number

    @property
    def run_id(self) -> str | None:
        """The run's id; None until registered."""
        registered = self._registered
        return None if registered is None else registered.run_id

    @property
    def registered(self) -> RunRegistered | None:
        """The collector's answer to the registration; None until then."""
        return self._registered

    @property
    def plan(self) -> SamplingPlan:
        """The newest sampling plan."""
        return self._plan

    @property
    def connected(self) -> bool:
        """Whether the run is registered and the last exchange went well."""
        return self._sender.is_connected

    @property
    def health(self) -> AgentHealth:
        """What was lost, failed or spooled; frames of one step count once."""
        return self._context.counters.health

    def put(self, frames: FrameSource) -> None:
        """Hand over the frames of one step. Never blocks, never raises; the oldest give way."""
        if self._takes():
            context = self._context
            context.buffer.put_frames(frames, context.book.local, context.clock.monotonic())

    def marker(self, marker: Marker) -> None:
        """Hand over an event that rules must know."""
        if self._takes():
            context = self._context
            context.buffer.put_note(marker, context.book.local, context.clock.monotonic())

    def set_snapshots(self, infos: Sequence[SnapshotInfo]) -> None:
        """Tell the whole inventory of snapshots, each with `attempt` as it was when taken."""
        if self._takes():
            context = self._context
            local = self._snapshots.to_local(infos, context.book.base)
            context.buffer.put_snapshots(local, context.clock.monotonic())

    def begin_attempt(self, start: AttemptStart) -> int:
        """Begin an attempt with the next frames; return its number, see `attempt`."""
        if self._takes():
            context = self._context
            note = Start.given(start, context.book.base)
            local = context.book.begin()
            context.buffer.put_note(note, local, context.clock.monotonic())
        return self.attempt

    def result(self, result: CommandResult) -> None:
        """Hand over the job's word on a command; it is kept until delivered."""
        if self._takes():
            context = self._context
            context.buffer.put_note(result, context.book.local, context.clock.monotonic())

    def set_state(self, state: RunState, step: int, message: str = "") -> None:
        """Tell the state of the job; while paused the sender listens for commands all the time."""
        if self._takes():
            self._context.buffer.put_state(StateChange(state, step, message))

    def close(self, state: RunState, timeout_seconds: float = 5.0) -> None:
        """Send what is left, tell how the job ended, and leave the rest in the spool.

        Returns after `timeout_seconds` at the latest, whatever the network and the disk do.
        """
        self._end(state, timeout_seconds)

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
            return  # asked for by `on_answer`: nobody can wait for himself
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
                # The only broad one of the agent: a mistake of ours must not reach training.
                sender.crashed(error)
                if is_strict:
                    raise
            if not sender.is_finished:
                pause = sender.pause()
                buffer.wait(pause.seconds, pause.wake_at)

    def _take_registration(self, answer: RunRegistered) -> None:
        self._context.book.set_base(answer.attempt)
        self._plan = answer.plan
        self._registered = answer

    def _take_answer(self, answer: BatchAnswer) -> None:
        self._plan = answer.plan
        self._tell(answer)


def _close_at_exit(reporter: Reporter) -> None:
    """Let a dying interpreter send or spool for a moment; without a word on how the job ended."""
    held = weakref.ref(reporter)

    def close() -> None:
        living = held()
        if living is not None:
            living._end(None, living._context.settings.exit_flush_seconds)  # noqa: SLF001  ours

    atexit.register(close)

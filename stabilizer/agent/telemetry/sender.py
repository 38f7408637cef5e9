"""What the sender thread does, one exchange at a time; the thread itself is the reporter's.

Order of what is sent: what earlier processes left and the collector must hear first; our
registration; a change of state; our records, oldest first; a heartbeat when nothing was sent for
long; what else earlier processes left; a long poll while the job stands still.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from stabilizer.agent.telemetry.batcher import Batcher
from stabilizer.agent.telemetry.buffer import Context, StateChange
from stabilizer.agent.telemetry.client import CollectorClient, RefusedError
from stabilizer.agent.telemetry.delivery import Delivery, Verdict, judge
from stabilizer.agent.telemetry.intake import Backlog, Intake
from stabilizer.agent.telemetry.leftovers import Leftovers
from stabilizer.agent.telemetry.spool import Record, Spool
from stabilizer.clock import Clock
from stabilizer.errors import TelemetryError
from stabilizer.protocol.batches import BatchAnswer
from stabilizer.protocol.runs import Heartbeat, RunRegister, RunRegistered, RunState

logger = logging.getLogger("stabilizer.agent.telemetry")

_POLL_GAP_SECONDS = 0.25
"""Least time between two polls."""
_TRIES_AT_THE_END = 3
"""Failures in a row after which a job that ends stops hoping."""

_Exchange: TypeAlias = Callable[[], BatchAnswer | None]


@dataclass(frozen=True, slots=True)
class Ending:
    """How the job ends."""

    state: RunState | None
    """What is told to the collector; None where nobody said."""
    send_until: float
    """Monotonic seconds after which nothing is sent any more."""


@dataclass(frozen=True, slots=True)
class Pause:
    """How long the thread may sleep, and how many waiting frames end its sleep."""

    seconds: float
    wake_at: int


class FailureLog:
    """Logs a failure once, and not again with every retry.

    Args:
        clock: Source of time.
        every_seconds: Shortest time between two lines about the same failure.
    """

    def __init__(self, clock: Clock, every_seconds: float) -> None:
        self._clock = clock
        self._every = every_seconds
        self._logged_at: dict[str, float] = {}

    def warn(self, key: str, message: str, *args: object) -> None:
        """Log a transient failure; the same key again only after `every_seconds`."""
        if self._may_log(key):
            logger.warning(message, *args)

    def unexpected(self, error: Exception, message: str) -> None:
        """Log an unexpected exception with its traceback; each type at the same rate."""
        if self._may_log(type(error).__name__):
            logger.error(message, exc_info=error)

    def error_once(self, key: str, message: str, *args: object) -> None:
        """Log a failure that an operator must fix; once until `recovered`."""
        if key not in self._logged_at:
            self._logged_at[key] = float("inf")
            logger.error(message, *args)

    def recovered(self, message: str, *args: object) -> None:
        """Log the recovery, if a failure was logged before."""
        if self._logged_at:
            self._logged_at.clear()
            logger.warning(message, *args)

    def _may_log(self, key: str) -> bool:
        now = self._clock.monotonic()
        if now - self._logged_at.get(key, float("-inf")) < self._every:
            return False
        self._logged_at[key] = now
        return True


class Backoff:
    """Exponential backoff with jitter.

    The jitter has its own generator: the job's random state is never touched.

    Args:
        first_seconds: Upper bound of the first wait.
        max_seconds: Upper bound of the longest wait.
        seed: Differs between jobs, so that they do not retry all at once.
    """

    def __init__(self, first_seconds: float, max_seconds: float, seed: str) -> None:
        self._first = first_seconds
        self._max = max_seconds
        self._random = random.Random(seed)  # noqa: S311  jitter is no secret
        self._until = 0.0
        self.num_failures = 0
        """Failures since the last success."""

    def fail(self, now: float, at_least_seconds: float = 0.0) -> None:
        """Count a failure and schedule the next try, after half to all of the present wait."""
        ceiling = min(self._max, self._first * 2.0 ** min(self.num_failures, 60))
        wait = ceiling * (0.5 + 0.5 * self._random.random())
        self._until = now + max(wait, at_least_seconds)
        self.num_failures += 1

    def succeed(self) -> None:
        """Reset."""
        self._until = 0.0
        self.num_failures = 0

    def try_now(self) -> None:
        """Allow the next try at once, and keep the count of failures."""
        self._until = 0.0

    def seconds_left(self, now: float) -> float:
        """Return the seconds until the next try; 0 if it is due."""
        return max(0.0, self._until - now) if self.num_failures else 0.0


class Sender:
    """The conversation with the collector. Used by the sender thread, except where said.

    Args:
        client: Talks to the collector.
        register: How this process introduces itself.
        context: Shared with training.
        on_registered: Told once the run is known, and again should it be registered anew.
        on_answer: Told every answer to this process' batches, heartbeats and polls.
    """

    def __init__(
        self,
        client: CollectorClient,
        register: RunRegister,
        context: Context,
        *,
        on_registered: Callable[[RunRegistered], None],
        on_answer: Callable[[BatchAnswer], None],
    ) -> None:
        settings, clock = context.settings, context.clock
        self._client = client
        self._heartbeat_seconds = register.heartbeat_seconds
        self._settings = settings
        self._clock = clock
        self._buffer = context.buffer
        self._counters = context.counters
        self._on_registered = on_registered
        self._on_answer = on_answer
        self._batcher = Batcher(context)
        self._batcher.catalogs.update({catalog.id: catalog for catalog in register.catalogs})
        catalogs, starts = self._batcher.catalogs, self._batcher.starts
        self._own = Delivery(client, register, catalogs=catalogs, starts=starts, is_live=True)
        self._spool = Spool(settings, register.name, register.key, context.counters)
        self._backlog = Backlog(self._spool, context.counters)
        self._intake = Intake(context, self._batcher, self._backlog, self._spool, self._own)
        self._leftovers = Leftovers(client, context.counters, settings)
        seed = f"{register.name}/{register.key}/{os.getpid()}"
        self._backoff = Backoff(settings.backoff_first_seconds, settings.backoff_max_seconds, seed)
        self._failure_log = FailureLog(clock, settings.log_every_seconds)
        self._has_looked = False
        self._is_ending = False
        self._is_closing = False
        self._struck: Record | None = None
        self._strikes = 0
        self._known_attempt = 1
        self._known_commands: list[str] = []
        self._last_sent_at = clock.monotonic()
        self._poll_at = float("-inf")
        self.settled = threading.Event()
        """Set when the run is registered, or refused: there is nothing more to wait for."""
        self.ending: Ending | None = None
        """Set by the training thread to end the conversation."""
        self.is_connected = False
        self.is_finished = False

    def is_past_end(self) -> bool:
        """Tell whether the job is over and waits no longer for anything to be sent."""
        ending = self.ending
        return ending is not None and self._clock.monotonic() >= ending.send_until

    def turn(self) -> None:
        """Do what is to be done now, with at most one exchange. Failures of the network stay here.

        Raises:
            Exception: A mistake of ours, of the frames or of a callback; the state is whole.
        """
        now = self._clock.monotonic()
        self._look_for_leftovers()
        is_away = self._backoff.num_failures > 0
        self._intake.collect(now, is_away=is_away, is_ending=self.ending is not None)
        if self.ending is not None:
            self._end(self.ending)
        elif self._backoff.seconds_left(now) == 0:
            exchange = self._next_exchange(now)
            if exchange is not None:
                self._try(exchange)

    def pause(self) -> Pause:
        """Return how long to sleep after a turn."""
        now = self._clock.monotonic()
        blocked = self._backoff.seconds_left(now)
        if self.ending is not None:
            is_in_time = now + blocked < self.ending.send_until
            return Pause(blocked if is_in_time else 0.0, self._never)
        due, wake_at = self._intake.seconds_to_due(now)
        waits = [blocked or self._seconds_to_exchange(now)]
        if due is not None:
            waits.append(due)
        return Pause(min(waits), wake_at)

    def crashed(self, error: Exception) -> None:
        """Take note of an exception that a turn has raised."""
        self._counters.add(failures=1)
        self._backoff.fail(self._clock.monotonic())
        self._failure_log.unexpected(error, "a mistake in the sender; training is not affected")

    @property
    def _never(self) -> int:
        return self._settings.buffer_steps + 1

    def _seconds_to_exchange(self, now: float) -> float:
        if self._next_exchange(now) is not None:
            return 0.0
        beat = max(0.0, self._last_sent_at + self._heartbeat_seconds - now)
        return min(beat, max(0.0, self._poll_at - now)) if self._is_paused else beat

    @property
    def _is_paused(self) -> bool:
        return self._buffer.state.state is RunState.PAUSED

    def _look_for_leftovers(self) -> None:
        if self._has_looked:
            return
        self._has_looked = True
        try:
            self._leftovers.add(self._spool.take_over())
        except TelemetryError as error:
            self._counters.add(failures=1)
            self._failure_log.warn(error.code, "%s", error)

    def _next_exchange(self, now: float) -> _Exchange | None:
        """Choose what is sent next."""
        if not self._own.is_registered:
            return self._advance_leftovers if self._leftovers.must_go_first else self._register
        has_records = self._backlog.head(now) is not None
        # That the job has ended is its last word: what it measured goes before.
        is_last_word = self._buffer.state.state not in (RunState.RUNNING, RunState.PAUSED)
        if self._buffer.has_new_state and not (has_records and is_last_word):
            return self._tell_state
        return self._send if has_records else self._next_idle(now)

    def _next_idle(self, now: float) -> _Exchange | None:
        """Choose what is sent when nothing new waits."""
        if now - self._last_sent_at >= self._heartbeat_seconds:
            return lambda: self._beat(self._buffer.state)
        if self._leftovers:
            return self._advance_leftovers
        if self._is_paused and now >= self._poll_at and not self._buffer.has_news:
            return self._poll
        return None

    def _try(self, exchange: _Exchange) -> bool:
        """Make an exchange; tell whether the collector is well."""
        try:
            answer = exchange()
        except TelemetryError as error:
            return self._settle(error)
        self._succeeded()
        if answer is not None:
            self._known_attempt = max(self._known_attempt, answer.attempt)
            self._known_commands = [command.id for command in answer.commands]
            self._on_answer(answer)
        return True

    def _succeeded(self) -> None:
        failures = self._backoff.num_failures
        self._backoff.succeed()
        self.is_connected = self._own.is_registered
        self._failure_log.recovered("the collector is well again after %d failures", failures)

    def _settle(self, error: TelemetryError) -> bool:
        """Draw the consequences of a failure; tell whether the collector is well nevertheless."""
        now = self._clock.monotonic()
        if error.code == "cancelled":
            return False
        self._counters.add(failures=1)
        verdict = judge(error)
        if verdict is Verdict.FINAL and self._own.is_registered:
            self._failure_log.warn(error.code, "the collector did not take a message: %s", error)
            self._poll_at = now + self._heartbeat_seconds
            self._last_sent_at = now
            self._backoff.succeed()
            return True
        self.is_connected = False
        wait = getattr(error, "retry_after_seconds", None) or 0.0
        if verdict in (Verdict.REFUSED, Verdict.FINAL):
            self._failure_log.error_once(
                error.code,
                "the collector refuses this job (%s); training goes on unwatched, next try in %d s",
                error,
                self._settings.refused_retry_seconds,
            )
            wait = self._settings.refused_retry_seconds
            self.settled.set()
        else:
            self._failure_log.warn("away", "%s (%s); frames are kept for later", error, error.code)
        if verdict is Verdict.LOST_RUN:
            self._own.forget()
        self._backoff.fail(now, wait)
        return False

    # The exchanges. Each raises TelemetryError where the collector did not take it.

    def _register(self) -> None:
        answer = self._own.register()
        self._known_attempt = answer.attempt
        self._last_sent_at = self._clock.monotonic()
        self._buffer.retell_snapshots()
        if self._buffer.state.state is not RunState.RUNNING:
            self._buffer.retell_state()
        self._on_registered(answer)
        self.settled.set()

    def _advance_leftovers(self) -> None:
        self._leftovers.advance()

    def _tell_state(self) -> BatchAnswer | None:
        change = self._buffer.take_state()
        try:
            return self._beat(change)
        except TelemetryError as error:
            if judge(error) is not Verdict.FINAL:
                self._buffer.retell_state()
            raise

    def _send(self) -> BatchAnswer | None:
        now = self._clock.monotonic()
        record = self._backlog.head(now)
        if record is None:
            return None
        try:
            answer = self._own.send(record)
        except RefusedError as error:
            return self._refused(record, error)
        self._backlog.pop(record, now)
        self._last_sent_at = self._clock.monotonic()
        return answer

    def _refused(self, record: Record, error: RefusedError) -> BatchAnswer | None:
        """Give a record up that the collector will never take; else raise the error again."""
        answer = None
        if error.status == 500:
            self._strikes = self._strikes + 1 if record is self._struck else 1
            self._struck = record
            if self._strikes < self._settings.poison_tries:
                raise error
            answer = self._beat(self._buffer.state)  # raises if the record is not the cause
        elif judge(error) is not Verdict.FINAL:
            raise error
        self._counters.add(dropped=record.num_frames, failures=1)
        self._failure_log.warn(
            error.code, "a record is given up, the collector refuses it: %s", error
        )
        self._backlog.pop(record, self._clock.monotonic())
        return answer

    def _beat(self, change: StateChange) -> BatchAnswer:
        step = self._batcher.last_step if change.state is RunState.RUNNING else change.step
        message = Heartbeat(
            attempt=self._known_attempt,
            step=step,
            state=change.state,
            message=change.message[:2000],
        )
        answer = self._client.heartbeat(self._run_id, message)
        self._last_sent_at = self._clock.monotonic()
        return answer

    def _poll(self) -> BatchAnswer:
        now = self._clock.monotonic()
        self._poll_at = now + _POLL_GAP_SECONDS
        beat = self._last_sent_at + self._heartbeat_seconds - now
        wait = max(1.0, min(self._settings.poll_wait_seconds, beat))
        return self._client.poll(
            self._run_id,
            self._known_attempt,
            known=self._known_commands,
            wait_seconds=wait,
            is_cancelled=lambda: self._buffer.has_news,
        )

    @property
    def _run_id(self) -> str:
        if self._own.run_id is None:
            raise TelemetryError("the run is not registered", code="not_registered")
        return self._own.run_id

    # The end.

    def _end(self, ending: Ending) -> None:
        """Send what is left while there is time, then the last word; the rest stays on disk."""
        now = self._clock.monotonic()
        is_hopeless = self._is_ending and self._backoff.num_failures >= _TRIES_AT_THE_END
        if not self._is_ending:
            self._is_ending = True
            self._backoff.try_now()
        if self._is_closing or is_hopeless or self.is_past_end():
            self._close(now)
        elif (left := self._backoff.seconds_left(now)) > 0:
            if now + left >= ending.send_until:
                self._close(now)
        elif not self._is_all_told(now):
            exchange = self._next_exchange(now)
            if exchange is not None:
                self._try(exchange)
        elif ending.state is None or self._try(self._last_word(ending.state)):
            self._close(now)

    def _is_all_told(self, now: float) -> bool:
        told = self._own.is_registered and not self._buffer.has_new_state
        return told and self._backlog.head(now) is None

    def _last_word(self, state: RunState) -> _Exchange:
        told = self._buffer.state
        step = self._batcher.last_step or told.step
        message = told.message if told.state is state else ""
        return lambda: self._beat(StateChange(state, step, message))

    def _close(self, now: float) -> None:
        self._is_closing = True
        self._intake.close(now)
        self._client.close()
        self.is_connected = False
        self.is_finished = True

"""The session with the collector: what the sender thread does, one exchange at a time.

Order of what is sent: the registration; a change of state; the records of this process, oldest
first; a heartbeat when nothing was sent for long; records of earlier processes; a long poll while
the job is paused.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from stabilizer.agent.telemetry.client import RefusedError, TelemetryClient
from stabilizer.agent.telemetry.failures import (
    Backoff,
    Counters,
    DeliveryVerdict,
    FailureLog,
    judge_failure,
    logger,
)
from stabilizer.agent.telemetry.outbox import Batcher, JobState, Outbox, ReporterContext
from stabilizer.agent.telemetry.spool import (
    SPOOL_ERRORS,
    Record,
    RecordKind,
    SessionInfo,
    Spool,
    SpoolFile,
)
from stabilizer.errors import TelemetryError
from stabilizer.protocol.batches import BatchAnswer
from stabilizer.protocol.commands import CommandResult
from stabilizer.protocol.runs import (
    CatalogsAdd,
    Heartbeat,
    RunRegister,
    RunRegistered,
    RunState,
)
from stabilizer.protocol.series import Catalog

_POLL_GAP_SECONDS: Final = 0.25
"""Shortest time between two polls."""
_TRIES_AT_THE_END: Final = 3
"""Failures in a row after which a job that ends stops trying."""
_CATALOGS_PER_REQUEST: Final = 100

_Exchange: TypeAlias = Callable[[], BatchAnswer | None]


@dataclass(frozen=True, slots=True)
class Ending:
    """How the job ends."""

    state: RunState | None
    """Reported to the collector; None if it is not known."""
    send_until: float
    """Monotonic seconds after which nothing is sent."""


@dataclass(frozen=True, slots=True)
class Pause:
    """How long the thread may sleep, and how many waiting frames end its sleep."""

    seconds: float
    wake_at: int


class Delivery:
    """Delivers the records of one process, and drops those that the collector never takes.

    Args:
        client: Talks to the collector.
        catalogs: Catalogs of the process, by id; may grow.
        probe: Sends a heartbeat of the live run; raises if the collector does not take it.
        counters: Count what is dropped.
        failure_log: Logs it.
        poison_tries: Server errors (status 500) in a row after which a record is dropped, if the
            collector is healthy otherwise.
    """

    def __init__(
        self,
        client: TelemetryClient,
        catalogs: Mapping[str, Catalog],
        *,
        probe: Callable[[], object],
        counters: Counters,
        failure_log: FailureLog,
        poison_tries: int,
    ) -> None:
        self._client = client
        self._catalogs = catalogs
        self._probe = probe
        self._counters = counters
        self._failure_log = failure_log
        self._poison_tries = poison_tries
        self._failed: Record | None = None
        self._tries = 0
        self.known_catalogs = set(catalogs)
        """Ids of the catalogs that the collector should know."""

    def deliver(self, run_id: str, record: Record) -> BatchAnswer | None:
        """Deliver a record, or drop it for good; either way it is done with.

        Returns:
            The answer to a batch; None for a result, and for what was dropped.

        Raises:
            TelemetryError: It was not delivered, or that is unclear; see `judge_failure`.
        """
        try:
            return self._send(run_id, record)
        except RefusedError as error:
            if judge_failure(error) is not DeliveryVerdict.REJECTED:
                self._check_poison(record, error)
            self._counters.add(dropped=record.num_frames, failures=1)
            self._failure_log.warn(
                error.code, "a record is dropped, the collector does not take it: %s", error
            )
            return None

    def _check_poison(self, record: Record, error: RefusedError) -> None:
        """Raise the error again unless this record alone is its cause."""
        if error.status != 500:
            raise error
        self._tries = self._tries + 1 if record is self._failed else 1
        self._failed = record
        if self._tries < self._poison_tries:
            raise error
        self._probe()

    def _send(self, run_id: str, record: Record) -> BatchAnswer | None:
        if record.kind is RecordKind.RESULT:
            self._client.send_result(run_id, CommandResult.model_validate_json(record.payload))
            return None
        self._send_catalogs(run_id)
        try:
            return self._client.send_frames(run_id, record.payload)
        except RefusedError as error:
            if error.code != "unknown_catalog":
                raise
        self.known_catalogs.clear()
        self._send_catalogs(run_id)
        return self._client.send_frames(run_id, record.payload)

    def _send_catalogs(self, run_id: str) -> None:
        if len(self.known_catalogs) == len(self._catalogs):
            return
        new = [item for key, item in self._catalogs.items() if key not in self.known_catalogs]
        for begin in range(0, len(new), _CATALOGS_PER_REQUEST):
            part = tuple(new[begin : begin + _CATALOGS_PER_REQUEST])
            self._client.add_catalogs(run_id, CatalogsAdd(catalogs=part))
            self.known_catalogs.update(catalog.id for catalog in part)


class OrphanedSpools:
    """Spools of dead processes, oldest first. Used by the sender thread alone.

    A process that never reached the collector has no run of its own: its records go to the run of
    this process, as those of an attempt that arrives late.

    Args:
        make_delivery: Makes the delivery for the catalogs of a process.
        counters: Count what is dropped.
    """

    def __init__(
        self, make_delivery: Callable[[Mapping[str, Catalog]], Delivery], counters: Counters
    ) -> None:
        self._make_delivery = make_delivery
        self._counters = counters
        self._waiting: deque[tuple[SpoolFile, SessionInfo]] = deque()
        self._delivery: Delivery | None = None

    def add(self, found: list[tuple[SpoolFile, SessionInfo]]) -> None:
        """Add spools that this process has taken over."""
        self._waiting.extend(found)
        if found:
            frames = sum(file.num_frames for file, _ in found)
            logger.info("an earlier process left %d steps in the spool; sending them", frames)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def advance(self, own_run_id: str) -> None:
        """Deliver the oldest record.

        Raises:
            TelemetryError: It was not delivered, and stays.
        """
        file, info = self._waiting[0]
        if self._delivery is None:
            self._delivery = self._make_delivery({item.id: item for item in info.catalogs})
        try:
            record = file.head()
            if record is not None:
                self._delivery.deliver(info.run_id or own_run_id, record)
                file.pop()
        except TelemetryError as error:
            is_lost = judge_failure(error) is DeliveryVerdict.LOST_RUN
            if not is_lost or info.run_id is None:
                raise
            self._drop(file, error)
        except SPOOL_ERRORS as error:
            self._drop(file, error)
        if not file:
            file.remove()
            self._waiting.popleft()
            self._delivery = None

    def _drop(self, file: SpoolFile, error: Exception) -> None:
        logger.warning("%d steps of an earlier process are lost: %s", file.num_frames, error)
        self._counters.add(dropped=file.num_frames, failures=1)
        file.remove()


class Sender:
    """The session of one process with the collector. Used by the sender thread, except where said.

    Args:
        client: Talks to the collector.
        register: Registration of this process.
        context: Shared with training.
        on_registered: Called when the run is registered, and again after the collector lost it.
        on_answer: Called with every answer to batches, heartbeats and polls of this process.
    """

    def __init__(
        self,
        client: TelemetryClient,
        register: RunRegister,
        context: ReporterContext,
        *,
        on_registered: Callable[[RunRegistered], None],
        on_answer: Callable[[BatchAnswer], None],
    ) -> None:
        settings, clock = context.settings, context.clock
        self._client = client
        self._registration = register
        self._settings = settings
        self._clock = clock
        self._buffer = context.buffer
        self._counters = context.counters
        self._first_attempt_id = context.attempt.id
        self._on_registered = on_registered
        self._on_answer = on_answer
        self._failure_log = FailureLog(clock, settings.log_every_seconds)
        self._batcher = Batcher(context)
        self._batcher.catalogs.update({catalog.id: catalog for catalog in register.catalogs})
        self._own = self._make_delivery(self._batcher.catalogs)
        self._spool = Spool(settings, register.name, register.key, context.counters)
        self._outbox = Outbox(context, self._batcher, self._spool, self._owner)
        self._orphans = OrphanedSpools(self._make_delivery, context.counters)
        seed = f"{register.name}/{register.key}/{os.getpid()}"
        self._backoff = Backoff(settings.backoff_first_seconds, settings.backoff_max_seconds, seed)
        self._has_claimed = False
        self._is_ending = False
        self._is_closing = False
        self._run_id: str | None = None
        self._known_attempt_id = context.attempt.id
        self._known_commands: list[str] = []
        self._last_sent_at = clock.monotonic()
        self._poll_at = float("-inf")
        self.settled = threading.Event()
        """Set when the run is registered or refused: there is nothing more to wait for."""
        self.ending: Ending | None = None
        """Set by the training thread to end the session."""
        self.is_connected = False
        self.is_finished = False

    def is_past_end(self) -> bool:
        """Return whether the job is over and waits no longer for anything to be sent."""
        ending = self.ending
        return ending is not None and self._clock.monotonic() >= ending.send_until

    def turn(self) -> None:
        """Do what is due, with at most one exchange. Network failures are handled here.

        Raises:
            Exception: A bug of ours, of the frames or of a callback; the state is consistent.
        """
        now = self._clock.monotonic()
        self._claim_orphans()
        is_away = self._backoff.num_failures > 0
        self._outbox.collect(now, is_away=is_away, is_ending=self.ending is not None)
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
            return Pause(blocked if is_in_time else 0.0, self._settings.buffer_steps + 1)
        due, wake_at = self._outbox.seconds_to_due(now)
        waits = [blocked or self._seconds_to_exchange(now)]
        if due is not None:
            waits.append(due)
        return Pause(min(waits), wake_at)

    def crashed(self, error: Exception) -> None:
        """Handle an exception that a turn has raised."""
        self._counters.add(failures=1)
        self._backoff.fail(self._clock.monotonic())
        self._failure_log.unexpected(error, "a bug in the sender; training is not affected")

    def _make_delivery(self, catalogs: Mapping[str, Catalog]) -> Delivery:
        return Delivery(
            self._client,
            catalogs,
            probe=lambda: self._beat(self._buffer.state),
            counters=self._counters,
            failure_log=self._failure_log,
            poison_tries=self._settings.poison_tries,
        )

    def _owner(self) -> SessionInfo:
        return SessionInfo(catalogs=tuple(self._batcher.catalogs.values()), run_id=self._run_id)

    def _seconds_to_exchange(self, now: float) -> float:
        if self._next_exchange(now) is not None:
            return 0.0
        beat = max(0.0, self._last_sent_at + self._registration.heartbeat_seconds - now)
        return min(beat, max(0.0, self._poll_at - now)) if self._is_paused else beat

    @property
    def _is_paused(self) -> bool:
        return self._buffer.state.state is RunState.PAUSED

    def _claim_orphans(self) -> None:
        if self._has_claimed:
            return
        self._has_claimed = True
        try:
            self._orphans.add(self._spool.take_over())
        except TelemetryError as error:
            self._counters.add(failures=1)
            self._failure_log.warn(error.code, "%s", error)

    def _next_exchange(self, now: float) -> _Exchange | None:
        """Choose what is sent next."""
        if self._run_id is None:
            return self._register
        has_records = self._outbox.head(now) is not None
        # The end of the job is reported last: its measurements go first.
        is_end = self._buffer.state.state not in (RunState.RUNNING, RunState.PAUSED)
        if self._buffer.has_new_state and not (has_records and is_end):
            return self._send_state
        return self._send_record if has_records else self._next_idle(now)

    def _next_idle(self, now: float) -> _Exchange | None:
        """Choose what is sent when nothing new waits."""
        if now - self._last_sent_at >= self._registration.heartbeat_seconds:
            return lambda: self._beat(self._buffer.state)
        if self._orphans:
            return self._advance_orphans
        if self._is_paused and now >= self._poll_at and not self._buffer.has_news:
            return self._poll
        return None

    def _try(self, exchange: _Exchange) -> bool:
        """Make an exchange; return whether the collector is healthy."""
        try:
            answer = exchange()
        except TelemetryError as error:
            return self._failed(error)
        failures = self._backoff.num_failures
        self._backoff.succeed()
        self.is_connected = self._run_id is not None
        if failures:
            self._failure_log.recovered("the collector answers again after %d failures", failures)
        if answer is not None:
            self._known_attempt_id = answer.attempt_id or self._known_attempt_id
            self._known_commands = [command.id for command in answer.commands]
            self._on_answer(answer)
        return True

    def _failed(self, error: TelemetryError) -> bool:
        """Handle a failed exchange; return whether the collector is healthy nevertheless."""
        now = self._clock.monotonic()
        if error.code == "cancelled":
            return False
        self._counters.add(failures=1)
        verdict = judge_failure(error)
        if verdict is DeliveryVerdict.REJECTED and self._run_id is not None:
            self._failure_log.warn(error.code, "the collector did not take a message: %s", error)
            self._poll_at = now + self._registration.heartbeat_seconds
            self._last_sent_at = now
            self._backoff.succeed()
            return True
        self.is_connected = False
        wait = getattr(error, "retry_after_seconds", None) or 0.0
        if verdict in (DeliveryVerdict.REFUSED, DeliveryVerdict.REJECTED):
            self._failure_log.error_once(
                error.code,
                "the collector refuses this job (%s); training is not monitored, next try in %d s",
                error,
                self._settings.refused_retry_seconds,
            )
            wait = self._settings.refused_retry_seconds
            self.settled.set()
        else:
            self._failure_log.warn("away", "%s (%s); frames are kept for later", error, error.code)
        if verdict is DeliveryVerdict.LOST_RUN:
            self._run_id = None
        self._backoff.fail(now, wait)
        return False

    # The exchanges. Each raises TelemetryError if it failed.

    def _register(self) -> None:
        catalogs = tuple(self._batcher.catalogs.values())
        message = self._registration.model_copy(update={"catalogs": catalogs})
        answer = self._client.register(message)
        self._run_id = answer.run_id
        self._known_attempt_id = self._first_attempt_id
        self._own.known_catalogs = {catalog.id for catalog in catalogs}
        self._last_sent_at = self._clock.monotonic()
        self._buffer.resend_snapshots()
        if self._buffer.state.state is not RunState.RUNNING:
            self._buffer.resend_state()
        self._on_registered(answer)
        self.settled.set()

    def _advance_orphans(self) -> None:
        self._orphans.advance(self._registered_run())

    def _send_state(self) -> BatchAnswer:
        state = self._buffer.take_state()
        try:
            return self._beat(state)
        except TelemetryError as error:
            if judge_failure(error) is not DeliveryVerdict.REJECTED:
                self._buffer.resend_state()
            raise

    def _send_record(self) -> BatchAnswer | None:
        now = self._clock.monotonic()
        record = self._outbox.head(now)
        if record is None:
            return None
        answer = self._own.deliver(self._registered_run(), record)
        self._outbox.pop(record, now)
        self._last_sent_at = self._clock.monotonic()
        return answer

    def _beat(self, state: JobState) -> BatchAnswer:
        step = self._batcher.last_step if state.state is RunState.RUNNING else state.step
        message = Heartbeat(
            attempt_id=self._known_attempt_id,
            step=step,
            state=state.state,
            message=state.message[:2000],
        )
        answer = self._client.heartbeat(self._registered_run(), message)
        self._last_sent_at = self._clock.monotonic()
        return answer

    def _poll(self) -> BatchAnswer:
        now = self._clock.monotonic()
        self._poll_at = now + _POLL_GAP_SECONDS
        beat = self._last_sent_at + self._registration.heartbeat_seconds - now
        wait = max(1.0, min(self._settings.poll_wait_seconds, beat))
        return self._client.poll(
            self._registered_run(),
            self._known_attempt_id,
            known=self._known_commands,
            wait_seconds=wait,
            is_cancelled=lambda: self._buffer.has_news,
        )

    def _registered_run(self) -> str:
        if self._run_id is None:
            raise TelemetryError("the run is not registered", code="not_registered")
        return self._run_id

    # The end.

    def _end(self, ending: Ending) -> None:
        """Send what is left while there is time, then how the job ended; spool the rest."""
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
        elif not self._is_all_sent(now):
            exchange = self._next_exchange(now)
            if exchange is not None:
                self._try(exchange)
        elif ending.state is None or self._try(self._end_report(ending.state)):
            self._close(now)

    def _is_all_sent(self, now: float) -> bool:
        is_reported = self._run_id is not None and not self._buffer.has_new_state
        return is_reported and self._outbox.head(now) is None

    def _end_report(self, state: RunState) -> _Exchange:
        reported = self._buffer.state
        step = self._batcher.last_step or reported.step
        message = reported.message if reported.state is state else ""
        return lambda: self._beat(JobState(state, step, message))

    def _close(self, now: float) -> None:
        self._is_closing = True
        self._outbox.close(now)
        self._client.close()
        self.is_connected = False
        self.is_finished = True

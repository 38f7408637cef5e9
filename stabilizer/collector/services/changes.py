"""What has changed, told to who waits for it: paused jobs, and pages that are open."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from stabilizer.protocol.views import ChangeEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one committed transaction has changed."""

    run_id: str | None
    """None: the switch over all runs, or silences."""
    frames: bool = False
    """Samples were stored."""
    decisions: bool = False
    """Something else that a page shows has changed."""
    wakes_job: bool = False
    """The run's job may have been given something to do."""
    step: int = 0
    """Where the run stands."""


@dataclass(slots=True)
class _Record:
    """All changes of a run so far, as far as it matters to one who has seen some of them."""

    version: int = 0
    step: int = 0
    last: int = 0
    """Number of its last change among those of all runs."""
    last_frames: int = 0
    last_decisions: int = 0


Listener = Callable[[Change], None]


class Changes:
    """Counts the changes of each run in this process. Safe for many threads.

    Who follows the changes holds nothing but a number, the cursor: however slow it is, nothing
    piles up for it, and what it has missed is told it as one event for each run.

    On PostgreSQL, what another collector changes is not heard here: a poll looks for itself when
    its time is over.
    """

    def __init__(self) -> None:
        self.start_id = uuid.uuid4().hex
        """Names this start of the collector: counts of another one mean nothing here."""
        self._condition = threading.Condition()
        self._versions: dict[str, int] = {}
        self._records: OrderedDict[str | None, _Record] = OrderedDict()
        """The run that changed last stands last."""
        self._number = 0
        self._listeners: tuple[Listener, ...] = ()
        self._closed = False

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` at every change, in the thread that made it.

        Args:
            listener: Must neither block nor fail; it may hear of a change twice.

        Returns:
            What ends the subscription.
        """
        with self._condition:
            self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            with self._condition:
                self._listeners = tuple(kept for kept in self._listeners if kept is not listener)

        return unsubscribe

    def version(self, run_id: str) -> int:
        """Return how often its job may have been given something to do.

        Take it before looking at the database.
        """
        with self._condition:
            return self._versions.get(run_id, 0)

    def notify(self, change: Change) -> None:
        """Count a change, which must be committed, and wake who waits for it."""
        with self._condition:
            self._record(change)
            if change.wakes_job and change.run_id is not None:
                self._versions[change.run_id] = self._versions.get(change.run_id, 0) + 1
                self._condition.notify_all()
            listeners = self._listeners
        for listener in listeners:
            listener(change)

    def _record(self, change: Change) -> None:
        self._number += 1
        record = self._records.setdefault(change.run_id, _Record())
        self._records.move_to_end(change.run_id)
        record.version += 1
        record.step = change.step
        record.last = self._number
        if change.frames:
            record.last_frames = self._number
        if change.decisions:
            record.last_decisions = self._number

    def cursor(self) -> int:
        """Return where one stands who has heard of everything so far."""
        with self._condition:
            return self._number

    def since(self, cursor: int, run_id: str | None = None) -> tuple[int, list[ChangeEvent]]:
        """Return the cursor of now and what has changed since another one, one event for each run.

        Args:
            cursor: Of an earlier call.
            run_id: Only this run, and what concerns all runs; None for everything.
        """
        with self._condition:
            if run_id is None:
                names = self._changed_after(cursor)
            else:
                names = [name for name in (None, run_id) if name in self._records]
            found = [(name, self._records[name]) for name in names]
            events = [
                _event(name, record, cursor) for name, record in found if record.last > cursor
            ]
            return self._number, events

    def _changed_after(self, cursor: int) -> list[str | None]:
        names: list[str | None] = []
        for name in reversed(self._records):
            if self._records[name].last <= cursor:
                break
            names.append(name)
        names.reverse()
        return names

    def wait(self, run_id: str, version: int, timeout_seconds: float) -> int:
        """Wait until the version is another one than given, or the time is over.

        Returns:
            The version then.
        """
        with self._condition:
            self._condition.wait_for(
                lambda: self._closed or self._versions.get(run_id, 0) != version,
                timeout=max(0.0, timeout_seconds),
            )
            return self._versions.get(run_id, 0)

    def close(self) -> None:
        """Wake everybody, now and from now on."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()


def _event(run_id: str | None, record: _Record, cursor: int) -> ChangeEvent:
    return ChangeEvent(
        run_id=run_id,
        frames=record.last_frames > cursor,
        decisions=record.last_decisions > cursor,
        version=record.version,
        step=record.step,
    )

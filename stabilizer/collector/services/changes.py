"""Wakes long polls when something about a run has changed."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Changes:
    """Counts the changes of each run in this process. Safe for many threads.

    On PostgreSQL, what another collector changes is not heard here: a poll looks for itself when
    its time is over.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._versions: dict[str, int] = {}
        self._listeners: tuple[Callable[[str], None], ...] = ()
        self._closed = False

    def subscribe(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call `listener(run_id)` at every change, in the thread that made it.

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
        """Return how many changes there have been; take it before looking at the database."""
        with self._condition:
            return self._versions.get(run_id, 0)

    def notify(self, run_id: str) -> None:
        """Count a change, which must be committed, and wake who waits for it."""
        with self._condition:
            self._versions[run_id] = self._versions.get(run_id, 0) + 1
            self._condition.notify_all()
            listeners = self._listeners
        for listener in listeners:
            listener(run_id)

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

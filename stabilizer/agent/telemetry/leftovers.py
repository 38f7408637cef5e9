"""Drains what earlier processes of the run left in the spool.

A session whose process never reached the collector, or began an attempt that the collector has not
heard of, must be told before this process registers: numbers of attempts are given in the order of
registration. All others are history, and wait until there is nothing newer to send.
"""

from __future__ import annotations

import logging
from collections import deque

from stabilizer.agent.telemetry.client import CollectorClient
from stabilizer.agent.telemetry.counters import Counters
from stabilizer.agent.telemetry.delivery import Delivery, Verdict, judge
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.agent.telemetry.spool import SPOOL_ERRORS, SessionInfo, SpoolFile
from stabilizer.errors import TelemetryError

_logger = logging.getLogger(__name__)


class Leftovers:
    """Sessions of earlier processes, oldest first. Used by the sender thread alone.

    Args:
        client: Talks to the collector.
        counters: Where what is given up is counted.
        settings: When to give a record up.
    """

    def __init__(
        self, client: CollectorClient, counters: Counters, settings: ReporterSettings
    ) -> None:
        self._client = client
        self._counters = counters
        self._settings = settings
        self._waiting: deque[tuple[SpoolFile, SessionInfo]] = deque()
        self._delivery: Delivery | None = None
        self._strikes = 0

    def add(self, found: list[tuple[SpoolFile, SessionInfo]]) -> None:
        """Take sessions over for draining."""
        self._waiting.extend(found)
        if found:
            frames = sum(session.num_frames for session, _ in found)
            _logger.info("an earlier process left %d steps in the spool; sending them", frames)

    @property
    def must_go_first(self) -> bool:
        """Whether any session is to be told before this process registers."""
        return any(_must_precede(session, info) for session, info in self._waiting)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def advance(self) -> None:
        """Make one exchange for the oldest session.

        Raises:
            TelemetryError: The collector is away or refuses us; the record stays.
        """
        session, info = self._waiting[0]
        delivery = self._begin(info)
        try:
            if delivery.run_id is None:
                answer = delivery.register()
                known = info.model_copy(update={"run_id": answer.run_id, "base": answer.attempt})
                self._waiting[0] = (session, known)
                _save(session, known)
                return
            record = session.head()
            if record is not None:
                delivery.send(record)
                session.pop()
                self._strikes = 0
            if not session:
                self._finish(session)
        except TelemetryError as error:
            self._settle(error, session, delivery)
        except SPOOL_ERRORS as error:
            _logger.warning("the spool %s cannot be read: %s", session.path, error)
            self._give_up(session)

    def _begin(self, info: SessionInfo) -> Delivery:
        if self._delivery is None:
            catalogs = {catalog.id: catalog for catalog in info.message.catalogs}
            self._delivery = Delivery(
                self._client, info.message, catalogs=catalogs, starts=info.starts, is_live=False
            )
            if info.run_id is not None and info.base is not None:
                self._delivery.resume(info.run_id, info.base)
        return self._delivery

    def _settle(self, error: TelemetryError, session: SpoolFile, delivery: Delivery) -> None:
        verdict = judge(error)
        if verdict is Verdict.LOST_RUN and _must_precede(session, self._waiting[0][1]):
            delivery.forget()
            raise error
        if verdict is Verdict.LOST_RUN or (verdict is Verdict.FINAL and delivery.run_id is None):
            _logger.warning("an earlier process' frames are given up: %s", error)
            self._give_up(session)
            return
        self._strikes += verdict is Verdict.RETRY and getattr(error, "status", 0) == 500
        if verdict is Verdict.FINAL or self._strikes >= self._settings.poison_tries:
            self._drop_head(error, session)
            return
        raise error

    def _drop_head(self, error: TelemetryError, session: SpoolFile) -> None:
        self._strikes = 0
        record = session.head()
        if record is not None:
            _logger.warning("a batch of an earlier process is given up: %s", error)
            self._counters.add(dropped=record.num_frames, failures=1)
            session.pop()
        if not session:
            self._finish(session)

    def _give_up(self, session: SpoolFile) -> None:
        self._counters.add(dropped=session.num_frames, failures=1)
        self._finish(session)

    def _finish(self, session: SpoolFile) -> None:
        session.remove()
        self._waiting.popleft()
        self._delivery = None
        self._strikes = 0


def _must_precede(session: SpoolFile, info: SessionInfo) -> bool:
    return info.run_id is None or session.begins_attempts


def _save(session: SpoolFile, info: SessionInfo) -> None:
    try:
        session.save(info)
    except SPOOL_ERRORS as error:
        # Then a further process registers it once more: an empty attempt, no loss.
        _logger.warning("the spool %s cannot be written: %s", session.path, error)

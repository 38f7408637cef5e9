"""Repositories over one session. They never commit: the unit of work does."""

from __future__ import annotations

from sqlalchemy.orm import Session

from stabilizer.collector.storage.repositories.catalogs import CatalogRepository
from stabilizer.collector.storage.repositories.control import AuditRepository, ControlRepository
from stabilizer.collector.storage.repositories.decisions import (
    AlertRepository,
    CommandRepository,
    IncidentRepository,
    RuleRepository,
)
from stabilizer.collector.storage.repositories.frames import FrameRepository, StoredBatch
from stabilizer.collector.storage.repositories.runs import AttemptRepository, RunRepository


class Repositories:
    """All repositories over one session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.runs = RunRepository(session)
        self.attempts = AttemptRepository(session)
        self.catalogs = CatalogRepository(session)
        self.frames = FrameRepository(session)
        self.alerts = AlertRepository(session)
        self.incidents = IncidentRepository(session)
        self.commands = CommandRepository(session)
        self.rules = RuleRepository(session)
        self.control = ControlRepository(session)
        self.audit = AuditRepository(session)


__all__ = ["Repositories", "StoredBatch"]

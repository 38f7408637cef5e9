"""All services of one collector, built once and shared by its threads."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from stabilizer.clock import Clock
from stabilizer.collector.services.change_feed import ChangeFeed
from stabilizer.collector.services.commands.preview import PreviewService
from stabilizer.collector.services.commands.service import CommandService
from stabilizer.collector.services.control import ControlService
from stabilizer.collector.services.evaluation.judge import Judge
from stabilizer.collector.services.evaluation.recorder import Recorder
from stabilizer.collector.services.frames.ingest import IngestService
from stabilizer.collector.services.overview import OverviewService
from stabilizer.collector.services.queries import QueryService
from stabilizer.collector.services.rules import RulesService
from stabilizer.collector.services.runs.service import RunService
from stabilizer.collector.services.unit_of_work import UnitOfWork
from stabilizer.collector.services.views.heatmap import HeatmapService
from stabilizer.collector.storage.engine import Database, parse_url
from stabilizer.collector.storage.migrate import head, revision_of, upgrade
from stabilizer.errors import ConfigurationError, StorageError
from stabilizer.rules.loader import RuleFile, default_rules, load_rules
from stabilizer.rules.warnings import warnings_of
from stabilizer.settings import CollectorSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """The collector without HTTP. All methods are synchronous and thread-safe."""

    database: Database
    feed: ChangeFeed
    runs: RunService
    ingest: IngestService
    queries: QueryService
    commands: CommandService
    previews: PreviewService
    control: ControlService
    rules: RulesService
    overview: OverviewService
    heatmaps: HeatmapService

    def ready(self) -> None:
        """Check that the database is reachable and has the schema of this version.

        Raises:
            StorageError: The database does not answer; or its schema differs, code
                `schema_outdated`.
        """
        self.database.check()
        with self.database.reading() as session:
            revision = revision_of(session.connection())
        if revision != head():
            raise StorageError(
                f"the database is at revision {revision}; this version requires {head()}",
                code="schema_outdated",
            )

    def close(self) -> None:
        """Close the database; idempotent."""
        self.database.close()


def build_services(settings: CollectorSettings, clock: Clock) -> Services:
    """Open the database, migrate it, and build the services on it.

    Raises:
        ConfigurationError: The URL is invalid, or the rules file cannot be read.
        RuleFileError: The rules file is invalid; lists all errors.
        StorageError: The database is in use, cannot be reached or cannot be migrated.
    """
    rules = _read_rules(settings.rules_file)
    database = Database(parse_url(settings.database_url))
    try:
        upgrade(database.engine)
    except BaseException:
        database.close()
        raise
    feed = ChangeFeed()
    lifetime = timedelta(seconds=settings.command_ttl_seconds)
    uow = UnitOfWork(database, clock, feed, Judge(Recorder(lifetime), rules))
    return Services(
        database=database,
        feed=feed,
        runs=RunService(uow, settings.lost_after_heartbeats),
        ingest=IngestService(uow),
        queries=QueryService(uow),
        commands=CommandService(uow, lifetime),
        previews=PreviewService(uow),
        control=ControlService(uow),
        rules=RulesService(uow),
        overview=OverviewService(uow),
        heatmaps=HeatmapService(uow),
    )


def _read_rules(file: Path | None) -> RuleFile:
    if file is None:
        return default_rules()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"rules_file {str(file)!r} cannot be read: {error}") from error
    rules = load_rules(text, str(file))
    for warning in warnings_of(rules):
        logger.warning("%s: %s", file, warning)
    return rules

"""Catalogs: stored once, shared by runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select

from stabilizer.collector.storage.engine import Repository, insert_unless_present
from stabilizer.collector.storage.models import CatalogRow, RunCatalogRow, SeriesRow
from stabilizer.protocol.series import Catalog


class CatalogRepository(Repository):
    """Catalogs of one session."""

    def add(self, run_id: str, catalogs: Sequence[Catalog], now: datetime) -> None:
        """Store new catalogs and link them to the run."""
        known = self.of_run(run_id)
        new = [catalog for catalog in catalogs if catalog.id not in known]
        for position, catalog in enumerate(new, start=len(known)):
            self._store(catalog, now)
            insert_unless_present(
                self._session,
                RunCatalogRow,
                [{"run_id": run_id, "catalog_id": catalog.id, "position": position}],
            )

    def _store(self, catalog: Catalog, now: datetime) -> None:
        row = {"id": catalog.id, "num_series": len(catalog), "created_at": now}
        insert_unless_present(self._session, CatalogRow, [row])
        columns = [
            {"catalog_id": catalog.id, "slot": slot, "metric": key.metric, "text": str(key)}
            for slot, key in enumerate(catalog.series)
        ]
        insert_unless_present(self._session, SeriesRow, columns)

    def of_run(self, run_id: str) -> dict[str, int]:
        """Return the run's catalogs in order of registration: id to width."""
        query = (
            select(CatalogRow.id, CatalogRow.num_series)
            .join(RunCatalogRow, RunCatalogRow.catalog_id == CatalogRow.id)
            .where(RunCatalogRow.run_id == run_id)
            .order_by(RunCatalogRow.position)
        )
        return dict(self._session.execute(query).all())

    def load(self, catalog_id: str) -> Catalog:
        """Build a stored catalog."""
        query = (
            select(SeriesRow.text)
            .where(SeriesRow.catalog_id == catalog_id)
            .order_by(SeriesRow.slot)
        )
        return Catalog.of(self._session.scalars(query))

    def series_of_run(self, run_id: str) -> list[tuple[str, str]]:
        """Return (catalog id, text form) of every series of a run, in catalog order."""
        query = (
            select(SeriesRow.catalog_id, SeriesRow.text)
            .join(RunCatalogRow, RunCatalogRow.catalog_id == SeriesRow.catalog_id)
            .where(RunCatalogRow.run_id == run_id)
            .order_by(RunCatalogRow.position, SeriesRow.slot)
        )
        return list(self._session.execute(query))

    def places_of_metric(self, run_id: str, metric: str) -> dict[str, list[tuple[str, int]]]:
        """Find the series of a metric: text form to its (catalog id, slot) pairs."""
        query = (
            select(SeriesRow.text, SeriesRow.catalog_id, SeriesRow.slot)
            .join(RunCatalogRow, RunCatalogRow.catalog_id == SeriesRow.catalog_id)
            .where(RunCatalogRow.run_id == run_id, SeriesRow.metric == metric)
            .order_by(RunCatalogRow.position, SeriesRow.slot)
        )
        found: dict[str, list[tuple[str, int]]] = {}
        for text, catalog_id, slot in self._session.execute(query):
            found.setdefault(text, []).append((catalog_id, slot))
        return found

    def places_in_runs(self, run_ids: Sequence[str], text: str) -> dict[str, dict[str, int]]:
        """Find a series in many runs: run id to catalog id to slot."""
        query = (
            select(RunCatalogRow.run_id, SeriesRow.catalog_id, SeriesRow.slot)
            .join(SeriesRow, SeriesRow.catalog_id == RunCatalogRow.catalog_id)
            .where(RunCatalogRow.run_id.in_(run_ids), SeriesRow.text == text)
        )
        found: dict[str, dict[str, int]] = {}
        for run_id, catalog_id, slot in self._session.execute(query):
            found.setdefault(run_id, {})[catalog_id] = slot
        return found

    def slots(self, run_id: str, texts: Sequence[str]) -> dict[str, list[tuple[str, int]]]:
        """Find series of a run: text form to its (catalog id, slot) pairs."""
        query = (
            select(SeriesRow.text, SeriesRow.catalog_id, SeriesRow.slot)
            .join(RunCatalogRow, RunCatalogRow.catalog_id == SeriesRow.catalog_id)
            .where(RunCatalogRow.run_id == run_id, SeriesRow.text.in_(texts))
            .order_by(RunCatalogRow.position)
        )
        found: dict[str, list[tuple[str, int]]] = {}
        for text, catalog_id, slot in self._session.execute(query):
            found.setdefault(text, []).append((catalog_id, slot))
        return found

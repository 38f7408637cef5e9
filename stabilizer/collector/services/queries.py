"""Reads for pages: series, alerts, incidents, rules and the audit log."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from stabilizer.collector.services.frames.reduction import reduce_extremes
from stabilizer.collector.services.unit_of_work import UnitOfWork
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.errors import NotFoundError
from stabilizer.protocol.decisions import Alert, AlertState, Incident, Mode
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.queries import (
    AuditPage,
    RuleHealthInfo,
    RunRisk,
    RunRules,
    SeriesData,
    SeriesInfo,
    SeriesQuery,
)
from stabilizer.protocol.series import SeriesKey
from stabilizer.protocol.views import MarkerInfo, SnapshotState

Samples = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float32]]
"""Steps, times and values of one series, shape [K] each."""


class QueryService:
    """Reads. None of them waits for a run's writers."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    def series(self, run_id: str) -> list[SeriesInfo]:
        """Return each series of a run once, in catalog order.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._uow.reading() as repos:
            repos.runs.require(run_id)
            found = repos.catalogs.series_of_run(run_id)
        infos: dict[str, SeriesInfo] = {}
        for catalog_id, text in found:
            if text not in infos:
                key = SeriesKey.parse(text)
                infos[text] = SeriesInfo(
                    series=text, metric=key.metric, labels=key.labels, catalog=catalog_id
                )
        return list(infos.values())

    def read(self, run_id: str, query: SeriesQuery) -> list[SeriesData]:
        """Return samples: one item per requested series and attempt that has any.

        Raises:
            NotFoundError: There is no such run, or it has no such series (code `unknown_series`).
        """
        with self._uow.reading() as repos:
            repos.runs.require(run_id)
            samples = _read_samples(repos, run_id, query)
        return [
            _show(series, attempt, parts, query.max_points)
            for series in dict.fromkeys(query.series)
            for attempt, parts in sorted(samples[series].items())
        ]

    def snapshots(self, run_id: str) -> list[SnapshotState]:
        """Return the snapshots that the job holds and whether each is healthy, newest first.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._uow.reading() as repos:
            repos.runs.require(run_id)
            held = repos.attempts.snapshots(run_id)
            healthy = repos.rules.healthy_snapshots(run_id)
        held.sort(key=lambda snapshot: (snapshot.attempt, snapshot.step), reverse=True)
        return [SnapshotState(snapshot=one, healthy=one.id in healthy) for one in held]

    def markers(self, run_id: str) -> list[MarkerInfo]:
        """Return the markers that the job reported, oldest first.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._uow.reading() as repos:
            repos.runs.require(run_id)
            return repos.attempts.markers(run_id)

    def alerts(self, run_id: str, state: AlertState | None = None, limit: int = 200) -> list[Alert]:
        """Return the newest alerts of a run, newest first.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._uow.reading() as repos:
            repos.runs.require(run_id)
            return repos.alerts.of_run(run_id, state, limit)

    def incidents(self, run_id: str) -> list[Incident]:
        """Return the incidents of a run with their decisions, newest first.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._uow.reading() as repos:
            repos.runs.require(run_id)
            return repos.incidents.of_run(run_id)

    def incident(self, incident_id: str) -> Incident:
        """Return an incident with its decisions.

        Raises:
            NotFoundError: There is no such incident.
        """
        with self._uow.reading() as repos:
            return repos.incidents.require(incident_id)

    def audit(self, run_id: str | None = None, after: int = 0, limit: int = 200) -> AuditPage:
        """Return the audit entries after id `after`, oldest first; also those of a deleted run.

        Raises:
            NotFoundError: No such run ever existed.
        """
        with self._uow.reading() as repos:
            if run_id is not None and not repos.audit.knows(run_id):
                repos.runs.require(run_id)
            return repos.audit.page(run_id, after, limit)

    def rules(self, run_id: str) -> RunRules:
        """Return the rules of a run and the health of each.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._uow.reading() as repos:
            run = repos.runs.require(run_id)
            status = repos.rules.status(run_id)
            health = [] if status is None else status.health
            risk = None if status is None else status.risk
            return RunRules(
                hash=run.rules_hash,
                text=repos.rules.text(run.rules_hash),
                mode=Mode(run.mode),
                health=tuple(RuleHealthInfo(**rule) for rule in health),
                risk=None if risk is None else RunRisk.model_validate(risk),
            )


def _read_samples(
    repos: Repositories, run_id: str, query: SeriesQuery
) -> dict[str, dict[int, list[Samples]]]:
    slots = repos.catalogs.slots(run_id, query.series)
    unknown = [series for series in query.series if series not in slots]
    if unknown:
        raise NotFoundError(f"the run has no series {unknown[0]!r}", code="unknown_series")
    by_catalog: dict[str, dict[str, int]] = defaultdict(dict)
    for series, places in slots.items():
        for catalog_id, slot in places:
            by_catalog[catalog_id][series] = slot
    samples: dict[str, dict[int, list[Samples]]] = defaultdict(lambda: defaultdict(list))
    for catalog_id, wanted in by_catalog.items():
        steps = (query.from_step, query.to_step)
        for attempt, block in repos.frames.read(run_id, catalog_id, query.attempt, steps):
            for series, slot in wanted.items():
                part = _column(block, slot, query)
                if len(part[0]):
                    samples[series][attempt].append(part)
    return samples


def _column(block: FrameBlock, slot: int, query: SeriesQuery) -> Samples:
    taken = block.steps >= query.from_step
    if query.to_step is not None:
        taken &= block.steps <= query.to_step
    if block.present is not None:
        taken &= block.present[:, slot]
    return block.steps[taken], block.times[taken], block.values[taken, slot]


def _show(series: str, attempt: int, parts: list[Samples], max_points: int | None) -> SeriesData:
    steps, times, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(steps, kind="stable")  # batches may arrive out of order
    steps, times, values = steps[order], times[order], values[order]
    kept = reduce_extremes(values, max_points)
    return SeriesData(
        series=series,
        attempt=attempt,
        steps=tuple(steps[kept].tolist()),
        times=tuple(times[kept].tolist()),
        values=tuple(values[kept].tolist()),
        num_samples=len(values),
        num_nonfinite=int((~np.isfinite(values)).sum()),
    )

"""The series of a job: measured at every step, measured of its modules, and logged by the job."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from stabilizer.agent.probes.naming import Site
from stabilizer.agent.probes.record import Slot
from stabilizer.protocol.metrics import Kind, Metric
from stabilizer.protocol.series import Catalog, SeriesKey

_EXTRA: Final = 2
"""Index of the extra catalog, after those of every step and of the modules."""

MAX_EXTRA_SERIES: Final = 2_000
"""Limit of logged series: a job that logs a new name at every step must not fill its memory."""

PROJECTIONS: Final = frozenset({Kind.O_PROJ, Kind.FC2, Kind.Q_PROJ, Kind.K_PROJ})
"""Where activations and gradients explode first (arXiv:2110.09456), and the inputs of logits."""

_logger = logging.getLogger(__name__)


def every_step_catalog(groups: Sequence[str]) -> Catalog:
    """Return the series of every step, with a learning rate for each parameter group."""
    metrics = (Metric.LOSS, Metric.LOSS_TOTAL, Metric.Z_LOSS, Metric.GRAD_NORM)
    keys = [SeriesKey(metric=metric) for metric in metrics]
    keys += [SeriesKey(metric=Metric.LR, labels={"group": group}) for group in groups]
    rest = (Metric.LR_SCALE, Metric.STEP_SECONDS, Metric.NONFINITE)
    return Catalog.of([*keys, *(SeriesKey(metric=metric) for metric in rest)])


def modules_catalog(sites: Sequence[Site]) -> Catalog | None:
    """Return the series of sampled steps, in site order; None if there are none."""
    keys = [key for site in sites for key in site_series(site)]
    return Catalog.of(keys) if keys else None


def site_series(site: Site) -> list[SeriesKey]:
    """Return the series of a site on sampled steps; an attention's as in `AttentionSlots`."""
    labels = site.labels
    if site.kind in PROJECTIONS:
        metrics = (Metric.ACTIVATION_RMS, Metric.GRAD_NORM)
        return [SeriesKey(metric=metric, labels=labels) for metric in metrics]
    if site.kind is Kind.ATTENTION:
        return [
            SeriesKey(metric=Metric.ATTENTION_ENTROPY, labels={**labels, "head": "min"}),
            SeriesKey(metric=Metric.ATTENTION_ENTROPY, labels={**labels, "head": "mean"}),
            SeriesKey(metric=Metric.ATTENTION_LOGIT_MAX, labels=labels),
        ]
    return [SeriesKey(metric=Metric.GATE, labels=labels)] if site.kind is Kind.GATE else []


class SeriesTable:
    """Maps series to slots; appends unknown ones to the extra catalog.

    The extra catalog gets a new id whenever it grows; its columns never move.
    """

    def __init__(self, every_step: Catalog, modules: Catalog | None) -> None:
        self._slots: dict[SeriesKey, Slot] = {}
        self._by_name: dict[tuple[str, tuple[tuple[str, str], ...]], Slot] = {}
        self.every_step = every_step
        self.modules = modules
        self._extra_keys: list[SeriesKey] = []
        self._extra: Catalog | None = None
        self._is_full = False
        for index, catalog in enumerate((every_step, modules)):
            for column, key in enumerate(() if catalog is None else catalog.series):
                self._slots[key] = Slot(index, column)

    @property
    def extra(self) -> Catalog | None:
        """Series logged by the job so far; None if there are none."""
        if len(self._extra_keys) != (0 if self._extra is None else len(self._extra)):
            self._extra = Catalog.of(self._extra_keys)
        return self._extra

    @property
    def catalogs(self) -> tuple[Catalog | None, Catalog | None, Catalog | None]:
        """All catalogs now, indexed by `Slot.catalog`."""
        return self.every_step, self.modules, self.extra

    def slot(self, key: SeriesKey) -> Slot:
        """Return the slot of a known series."""
        return self._slots[key]

    def find(self, name: str, labels: Mapping[str, str]) -> Slot | None:
        """Return the slot of a logged series, new if needed; None if there are too many.

        Raises:
            pydantic.ValidationError: Name or labels are invalid.
        """
        key = (name, tuple(sorted(labels.items())))
        slot = self._by_name.get(key)
        if slot is None:
            slot = self._find_or_append(SeriesKey(metric=name, labels=dict(labels)))
            if slot is not None:
                self._by_name[key] = slot
        return slot

    def _find_or_append(self, key: SeriesKey) -> Slot | None:
        if key in self._slots:
            return self._slots[key]
        if len(self._extra_keys) >= MAX_EXTRA_SERIES:
            if not self._is_full:
                _logger.warning("series %s and later ones are not reported: too many", key)
            self._is_full = True
            return None
        slot = Slot(_EXTRA, len(self._extra_keys))
        self._extra_keys.append(key)
        self._slots[key] = slot
        return slot

"""Which series of a run a rule watches, as the run's catalogs become known.

A series keeps its row from the moment at which it is first measured. Shares of layers are taken of
all layers known so far in the tower, so that it does not matter how the series are spread over
catalogs.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from stabilizer.protocol.series import Catalog, SeriesKey
from stabilizer.rules.spec import ANY_VALUE, SelectSpec

IndexArray = npt.NDArray[np.intp]

_NO_TOWER: Final = ""


class Watched(NamedTuple):
    """What a rule watches of a catalog."""

    columns: IndexArray
    rows: IndexArray
    """The rows that the columns belong to."""
    pairs: tuple[tuple[int, int], ...]
    """The same as pairs (column, row)."""


class Selection:
    """The rows of one rule.

    Attributes:
        series: Text form of the series of every row.
        chosen: By row, whether it is selected now; not if its layer fell out of a share.
    """

    def __init__(self, select: SelectSpec) -> None:
        self._select = select
        self.series: list[str] = []
        self.chosen = np.empty(0, np.bool_)
        self._rows: dict[str, int] = {}
        self._layers: dict[str, frozenset[int]] = {}
        self._columns: dict[str, Watched] = {}

    def columns(self, catalog: Catalog) -> Watched:
        """Return the columns of a catalog that the rule watches, and the rows they belong to."""
        known = self._columns.get(catalog.id)
        if known is None:
            self._learn_layers(catalog)
            known = self._columns[catalog.id] = self._map(catalog)
            self._choose()
        return known

    def _choose(self) -> None:
        if self._select.layer is None:
            self.chosen = np.ones(len(self.series), np.bool_)
        else:
            chosen = [self._is_chosen(SeriesKey.parse(text)) for text in self.series]
            self.chosen = np.array(chosen, np.bool_)

    def _map(self, catalog: Catalog) -> Watched:
        pairs = tuple(
            (column, self._row(str(key)))
            for column, key in enumerate(catalog.series)
            if self._matches(key) and self._is_chosen(key)
        )
        table = np.array(pairs, np.intp).reshape(-1, 2).T.copy()
        return Watched(table[0], table[1], pairs)

    def _row(self, text: str) -> int:
        row = self._rows.setdefault(text, len(self.series))
        if row == len(self.series):
            self.series.append(text)
        return row

    def _learn_layers(self, catalog: Catalog) -> None:
        if self._select.layer is None:
            return
        for key in catalog.series:
            layer = _layer(key)
            if layer is None or not self._matches(key):
                continue
            tower = key.labels.get("tower", _NO_TOWER)
            known = self._layers.get(tower, frozenset())
            if layer not in known:
                self._layers[tower] = known | {layer}
                self._columns.clear()  # shares may have moved

    def _matches(self, key: SeriesKey) -> bool:
        if key.metric not in self._select.metric:
            return False
        return all(
            _label_matches(key.labels.get(name), allowed)
            for name, allowed in self._select.labels.items()
        )

    def _is_chosen(self, key: SeriesKey) -> bool:
        if self._select.layer is None:
            return True
        layer = _layer(key)
        known = self._layers.get(key.labels.get("tower", _NO_TOWER), frozenset())
        return layer is not None and layer in self._select.layer.chosen(known)

    def state(self) -> dict[str, JsonValue]:
        """Return what `load` needs."""
        layers: dict[str, JsonValue] = {}
        for tower, known in self._layers.items():
            layers[tower] = [*sorted(known)]
        return {"series": list(self.series), "layers": layers}

    def load(self, series: list[str], layers: dict[str, list[int]]) -> None:
        """Take over rows and layers."""
        self.series = list(series)
        self._rows = {text: row for row, text in enumerate(self.series)}
        self._layers = {tower: frozenset(known) for tower, known in layers.items()}
        self._columns.clear()
        self._choose()


def _layer(key: SeriesKey) -> int | None:
    text = key.labels.get("layer", "")
    return int(text) if text.isdecimal() else None


def _label_matches(value: str | None, allowed: tuple[str | None, ...]) -> bool:
    return value in allowed or (value is not None and ANY_VALUE in allowed)

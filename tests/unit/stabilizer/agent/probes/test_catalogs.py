import logging

import pytest
from pydantic import ValidationError

from stabilizer.agent.probes import catalogs
from stabilizer.agent.probes.catalogs import SeriesTable, every_step_catalog, modules_catalog
from stabilizer.agent.probes.record import Slot
from stabilizer.protocol.series import Catalog


def test_every_step_has_a_rate_for_each_group():
    keys = [str(key) for key in every_step_catalog(("decay", "no_decay")).series]
    assert keys == [
        "loss",
        "loss_total",
        "z_loss",
        "grad_norm",
        'lr{group="decay"}',
        'lr{group="no_decay"}',
        "lr_scale",
        "step_seconds",
        "nonfinite",
    ]


def test_nothing_to_measure_has_no_catalog():
    assert modules_catalog([]) is None


def test_known_series_keep_their_place_and_unknown_ones_are_appended():
    modules = Catalog.of(['gate{module="a"}'])
    table = SeriesTable(every_step_catalog(()), modules)
    assert table.extra is None
    assert table.find("loss", {}) == Slot(0, 0)
    assert table.find("gate", {"module": "a"}) == Slot(1, 0)
    assert table.extra is None

    assert table.find("loss", {"source": "web"}) == Slot(2, 0)
    first = table.extra
    assert table.extra is first
    assert table.find("tokens", {}) == Slot(2, 1)
    assert table.find("loss", {"source": "web"}) == Slot(2, 0)
    assert first is not None
    assert table.extra is not None
    assert table.extra.series[:1] == first.series
    assert [str(key) for key in table.extra.series] == ['loss{source="web"}', "tokens"]
    assert table.extra.id != first.id
    assert table.catalogs == (table.every_step, modules, table.extra)


def test_the_order_of_labels_does_not_matter():
    table = SeriesTable(every_step_catalog(()), None)
    slot = table.find("loss", {"source": "web", "rank": "1"})
    assert table.find("loss", {"rank": "1", "source": "web"}) == slot


def test_a_bad_name_is_an_error():
    table = SeriesTable(every_step_catalog(()), None)
    for _ in range(2):
        with pytest.raises(ValidationError, match="snake_case"):
            table.find("Train/Loss", {})
    assert table.extra is None


def test_too_many_names_are_dropped_and_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(catalogs, "MAX_EXTRA_SERIES", 3)
    table = SeriesTable(every_step_catalog(()), None)
    with caplog.at_level(logging.WARNING):
        slots = [table.find(f"step_{number}", {}) for number in range(10)]
    assert slots == [Slot(2, 0), Slot(2, 1), Slot(2, 2), *[None] * 7]
    assert len(caplog.records) == 1
    assert table.find("step_1", {}) == Slot(2, 1)
    assert table.find("loss", {}) == Slot(0, 0)

from __future__ import annotations

import pytest

from stabilizer.protocol.series import Catalog
from stabilizer.rules.selection import Selection
from stabilizer.rules.spec import SelectSpec


def catalog(*towers: tuple[str, int], kinds: tuple[str, ...] = ("o_proj",)) -> Catalog:
    return Catalog.of(
        f'activation_rms{{kind="{kind}",layer="{layer}",module="m",tower="{tower}"}}'
        for tower, layers in towers
        for layer in range(layers)
        for kind in kinds
    )


def selection(**select: object) -> Selection:
    return Selection(SelectSpec.model_validate(select))


def chosen(select: Selection, frame: Catalog) -> list[str]:
    columns, rows, _ = select.columns(frame)
    assert [select.series[row] for row in rows] == [str(frame.series[c]) for c in columns]
    return [str(frame.series[c]) for c in columns]


def layers(select: Selection, frame: Catalog) -> list[tuple[str, str]]:
    columns = select.columns(frame).columns
    return [(frame.series[c].labels["tower"], frame.series[c].labels["layer"]) for c in columns]


LOSSES = Catalog.of(["loss", 'loss{source="web"}', 'loss{source="pairs"}', "z_loss"])


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ({"metric": "loss"}, ["loss", 'loss{source="web"}', 'loss{source="pairs"}']),
        ({"metric": "loss", "source": None}, ["loss"]),
        ({"metric": "loss", "source": "*"}, ['loss{source="web"}', 'loss{source="pairs"}']),
        ({"metric": "loss", "source": [None, "web"]}, ["loss", 'loss{source="web"}']),
        ({"metric": ["loss", "z_loss"], "source": None}, ["loss", "z_loss"]),
        ({"metric": "grad_norm"}, []),
        ({"metric": "loss", "layer": [0]}, []),
    ],
    ids=str,
)
def test_labels(select, expected):
    assert chosen(selection(**select), LOSSES) == expected


@pytest.mark.parametrize(
    ("depth", "share", "count"),
    [(1, 0.34, 1), (2, 0.34, 1), (3, 0.34, 1), (80, 0.34, 27), (4, 1.0, 4)],
)
def test_bottom_takes_a_share_and_at_least_one(depth, share, count):
    select = selection(metric="activation_rms", layer={"bottom": share})
    got = layers(select, catalog(("language", depth)))
    assert [layer for _, layer in got] == [str(i) for i in range(count)]


def test_share_is_of_each_tower():
    select = selection(metric="activation_rms", layer={"bottom": 0.5})
    got = layers(select, catalog(("vision", 4), ("language", 2)))
    assert got == [("vision", "0"), ("vision", "1"), ("language", "0")]


def test_top_takes_the_last():
    select = selection(metric="activation_rms", layer={"top": 0.5})
    assert layers(select, catalog(("vision", 4))) == [("vision", "2"), ("vision", "3")]


def test_layers_by_index():
    select = selection(metric="activation_rms", layer=[0, 3, 9])
    assert layers(select, catalog(("vision", 4))) == [("vision", "0"), ("vision", "3")]


def test_share_does_not_depend_on_how_series_are_spread_over_catalogs():
    select = selection(metric="activation_rms", layer={"bottom": 0.5})
    whole = catalog(("vision", 4))
    parts = [Catalog(series=(key,)) for key in whole.series]
    for part in parts:
        select.columns(part)
    assert [chosen(select, part) != [] for part in parts] == [True, True, False, False]
    assert select.chosen.sum() == 2


def test_series_in_two_catalogs_has_one_row():
    select = selection(metric="loss")
    one, other = Catalog.of(["loss", "lr"]), Catalog.of(["lr", "loss"])
    assert select.columns(one)[1].tolist() == select.columns(other)[1].tolist() == [0]
    assert select.series == ["loss"]


def test_layer_label_that_is_no_number_is_not_a_layer():
    frame = Catalog.of(['activation_rms{layer="x"}', "activation_rms"])
    assert chosen(selection(metric="activation_rms", layer={"bottom": 1.0}), frame) == []


def test_saved_and_loaded_knows_the_same():
    spec = SelectSpec.model_validate({"metric": "activation_rms", "layer": {"bottom": 0.5}})
    first, second = Selection(spec), Selection(spec)
    first.columns(catalog(("vision", 4)))
    state = first.state()
    second.load(state["series"], state["layers"])
    late = catalog(("vision", 6))
    assert chosen(second, late) == chosen(first, late)
    assert second.series == first.series
    assert second.chosen.sum() == first.chosen.sum() == 3


def test_text_form_names_the_selection():
    spec = SelectSpec.model_validate(
        {"metric": "activation_rms", "kind": ["o_proj", "fc2"], "layer": {"bottom": 0.34}}
    )
    assert str(spec) == 'activation_rms{kind="o_proj|fc2",layer="bottom 0.34"}'

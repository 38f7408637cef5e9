"""Quorums of groups: one tower, one source alone, all sources together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stabilizer.errors import RuleFileError
from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.series import Catalog
from stabilizer.rules.brain import Brain, PolicyContext
from stabilizer.rules.loader import RuleFile, load_rules

TOWERS = [
    'rms{layer="0",tower="vision"}',
    'rms{layer="1",tower="vision"}',
    'rms{layer="0",tower="language"}',
    'rms{layer="1",tower="language"}',
    'rms{layer="0"}',
]
SOURCES = ['loss{source="a"}', 'loss{source="b"}', 'loss{source="c"}', "loss"]


def file_of(**fields: object) -> RuleFile:
    rule = {
        "name": "together",
        "select": {"metric": "rms"},
        "detect": {"threshold": {"above": 0}},
        "severity": "notice",
        "quorum": 0.6,
        **fields,
    }
    policy = {"ladder": ["pause"], "act_on": {}}
    return load_rules(json.dumps({"rules": [rule], "policy": policy}))


class Player:
    """One series a column: `x` is high, `.` is calm, `_` is not measured."""

    def __init__(self, series: list[str], **fields: object) -> None:
        self.file = file_of(**fields)
        self.brain = Brain(self.file)
        self.catalog = Catalog.of(series)
        self.brain.add_catalog(self.catalog)
        self.brain.begin_attempt(1, 0, MarkerKind.RESUME)

    def show(self, *rows: str, start: int = 1, every: int = 1) -> list[str]:
        seen = []
        for index, row in enumerate(rows):
            step = start + index * every
            values = np.array([{"x": 1.0, "n": np.nan}.get(mark, 0) for mark in row], np.float32)
            present = np.array([mark != "_" for mark in row])
            out = self.brain.observe(self.catalog.id, step, values, present)
            self.brain.decide(step, PolicyContext(Mode.OBSERVE))
            seen += [f"{c.step} {c.key.series} {c.state}" for c in out.alerts]
        return seen


def test_each_group_has_an_alert_of_its_own():
    run = Player(TOWERS, by="tower")
    assert run.show("x...x", "xx...", "xxxxx", "..xx.") == [
        '2 rms{tower="vision"} firing',
        '3 rms{tower="language"} firing',
        '4 rms{tower="vision"} resolved',
    ]


def test_message_names_the_group_and_its_worst_series():
    run = Player(TOWERS, by="tower", message="Look at it.")
    out = run.brain.observe(run.catalog.id, 1, np.array([0, 0, 1, 2, 9], np.float32))
    [change] = out.alerts
    assert change.message == (
        'tower language: 2 of 2 series, 2 needed; most at rms{layer="1",tower="language"}. '
        "Look at it."
    )
    assert (change.value, change.score) == (2, 2)


def test_group_by_layer_replaces_the_share_of_layers():
    fields = {"select": {"metric": "rms", "layer": {"bottom": 0.5}}, "by": "layer", "quorum": 1}
    assert Player(TOWERS, **fields).show("xx...") == ['1 rms{layer="0"} firing']


SOURCE = {"select": {"metric": "loss", "source": "*"}, "by": "source", "quorum": 1}
ALONE, TOGETHER = {"groups": {"most": 1}}, {"groups": "all"}


@pytest.mark.parametrize(
    ("groups", "rows", "firing"),
    [
        (ALONE, ["x..."], True),
        (ALONE, ["xx.."], False),
        (ALONE, ["xxx."], False),
        (ALONE, ["x__x"], False),  # nobody knows of the others
        (ALONE, ["_..x", "x___"], True),  # calm when they were last measured
        (TOGETHER, ["xxx."], True),
        (TOGETHER, ["xx.x"], False),
        (TOGETHER, ["x__."], False),  # of one alone it cannot be said
        (TOGETHER, ["x__.", "_x_."], True),
        (TOGETHER, ["xnx."], True),  # a NaN is not judged
        ({"groups": 2}, ["x.x."], True),
        ({"groups": 2}, ["x..x"], False),
        ({"groups": 0.5}, ["xx.."], True),
        ({"groups": {"least": 2, "most": 2}}, ["xx.."], True),
        ({"groups": {"least": 2, "most": 2}}, ["xxx."], False),
    ],
)
def test_number_of_groups(groups, rows, firing):
    run = Player(SOURCES, **SOURCE, **groups)
    seen = run.show(*rows)
    assert seen[-1:] == ([f'{len(rows)} loss{{source="*"}} firing'] if firing else [])


@pytest.mark.parametrize("every", [1, 5, 10])
def test_sampling_changes_nothing(every):
    steps = {"for": {"steps": 20}, "keep_firing_for": {"steps": 20}}
    run = Player(TOWERS, by="tower", **steps)
    rows = ["....." if step <= 40 else "xx..." for step in range(every, 101, every)]
    seen = run.show(*rows, start=every, every=every)
    assert [line.split()[0] for line in seen][-1] in {"60", "61", "65", "70"}
    assert seen[-1].endswith("firing")


@pytest.mark.parametrize("groups", [{}, ALONE, TOGETHER, {"groups": 2}])
def test_saved_and_loaded_it_continues_the_same(groups):
    rng = np.random.default_rng(5)
    rows = ["".join(rng.choice(list("x.n_"), 4, p=[0.5, 0.3, 0.1, 0.1])) for _ in range(60)]
    whole, first = Player(SOURCES, **SOURCE, **groups), Player(SOURCES, **SOURCE, **groups)
    expected = whole.show(*rows)
    seen = first.show(*rows[:23])
    second = Player(SOURCES, **SOURCE, **groups)
    second.brain.load_state(first.brain.state_dict())
    assert seen + second.show(*rows[23:], start=24) == expected
    assert second.brain.state_dict() == whole.brain.state_dict()
    assert any(line.endswith("resolved") for line in expected)


def test_rollback_forgets_which_groups_were_flagged():
    run = Player(SOURCES, **SOURCE, **TOGETHER)
    run.show("xxx.")
    ended = run.brain.begin_attempt(2, 0, MarkerKind.ROLLBACK)
    assert [str(change.state) for change in ended.alerts] == ["resolved"]
    assert run.show("x__.", start=60) == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"by": "tower", "quorum": None}, "rules.0"),
        ({"by": "Tower"}, "rules.0.by"),
        ({"groups": 2}, "rules.0"),
        ({"by": "tower", "groups": {"least": 3, "most": 2}}, "rules.0.groups"),
        ({"by": "tower", "groups": {"least": "all", "most": 2}}, "rules.0.groups"),
        ({"by": "tower", "groups": 1.5}, "rules.0.groups"),
        ({"by": "tower", "groups": "some"}, "rules.0.groups"),
        ({"by": "tower", "groups": {"most": 0}}, "rules.0.groups.most"),
    ],
)
def test_mistakes_name_their_field(fields, field):
    with pytest.raises(RuleFileError) as caught:
        file_of(**fields)
    assert any(error.field.startswith(field) for error in caught.value.exceptions)

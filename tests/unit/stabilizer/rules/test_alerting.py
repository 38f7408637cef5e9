from __future__ import annotations

import math

import pytest

from stabilizer.protocol.decisions import Severity
from stabilizer.rules.alerting import AlertingSpec, AlertSample, AlertTable, JudgedInstance
from stabilizer.rules.spec import SpanSpec


def table(for_: int | SpanSpec = 1, keep: int | SpanSpec = 1, instances: int = 1) -> AlertTable:
    spans = [SpanSpec(samples=x) if isinstance(x, int) else x for x in (for_, keep)]
    alerts = AlertTable(AlertingSpec("r", Severity.NOTICE, *spans, 3.0))
    alerts.resize(instances)
    return alerts


def play(alerts: AlertTable, text: str, start: int = 1, every: int = 1) -> list[tuple[int, str]]:
    """Feed one instance: `x` flagged, `.` clear, `?` unknown. Return transitions by step."""
    changes = []
    for index, mark in enumerate(text):
        step = start + index * every
        judged = [JudgedInstance(0, mark == "x", float(step), 4.0)] if mark != "?" else []
        sample = AlertSample(judged)
        changes += [(c.step, str(c.state)) for c in alerts.advance(1, step, sample, ["s"])]
    return changes


@pytest.mark.parametrize(
    ("for_", "keep", "text", "expected"),
    [
        (1, 1, ".x.", [(2, "firing"), (3, "resolved")]),
        (3, 1, "xx.", [(1, "pending"), (3, "inactive")]),
        (3, 1, "xxx.", [(1, "pending"), (3, "firing"), (4, "resolved")]),
        (3, 1, "xx.xxx", [(1, "pending"), (3, "inactive"), (4, "pending"), (6, "firing")]),
        (2, 1, "x?x", [(1, "pending"), (3, "firing")]),
        (1, 1, "x???", [(1, "firing")]),
        (1, 3, "x..x...", [(1, "firing"), (7, "resolved")]),
        (1, 3, "x.?..", [(1, "firing"), (5, "resolved")]),
        (1, 1, "....", []),
    ],
)
def test_transitions(for_, keep, text, expected):
    assert play(table(for_, keep), text) == expected


@pytest.mark.parametrize(("every", "fires"), [(1, 21), (2, 21), (10, 21), (50, 51)])
def test_steps_are_counted_whatever_the_sampling(every, fires):
    alerts = table(for_=SpanSpec(steps=20, samples=2))
    assert play(alerts, "x" * (fires // every + 1), every=every)[-1] == (fires, "firing")


def test_steps_alone_are_not_enough_samples():
    alerts = table(for_=SpanSpec(steps=20, samples=4))
    assert play(alerts, "xxx", every=50) == [(1, "pending")]
    assert play(alerts, "x", start=151) == [(151, "firing")]


def test_alert_is_kept_for_steps():
    alerts = table(keep=SpanSpec(steps=20))
    assert play(alerts, "x..", every=10) == [(1, "firing")]
    assert play(alerts, ".", start=31) == [(31, "resolved")]


def test_change_tells_what_was_seen():
    alerts = table(for_=2)
    sample = AlertSample([JudgedInstance(0, True, 7.0, math.nan)], "look")
    alerts.advance(4, 10, sample, ["s"])
    (change,) = alerts.advance(4, 11, sample, ["s"])
    assert change.key == (4, "r", "s", 10)
    assert (change.firing_step, change.value, change.score, change.threshold) == (
        11,
        7.0,
        None,
        3.0,
    )
    assert change.message == "look"


def test_instances_are_apart():
    alerts = table(for_=2, instances=3)
    for step, row in enumerate([(1, 0, 1), (1, 0, 0), (0, 0, 1)], start=1):
        sample = AlertSample([JudgedInstance(i, bool(x), 0.0, 0.0) for i, x in enumerate(row)])
        changes = alerts.advance(1, step, sample, ["a", "b", "c"])
    assert [(c.key.series, c.state) for c in changes] == [("a", "resolved"), ("c", "pending")]


def test_kept_firing_is_not_flagged():
    alerts = table(keep=5)
    play(alerts, "x.")
    assert not alerts.active[0].is_flagged
    play(alerts, "x", start=3)
    assert alerts.active[0].is_flagged


def test_reset_ends_everything():
    alerts = table(for_=3, instances=1)
    play(alerts, "xx")
    (change,) = alerts.reset(1, "a new attempt")
    assert (change.state, change.resolved_step) == ("inactive", None)
    assert play(alerts, "xx", start=2) == [(2, "pending")]
    play(alerts, "x", start=4)
    (change,) = alerts.reset(2, "a new attempt")
    assert (change.state, change.resolved_step, change.message) == ("resolved", 2, "a new attempt")
    assert alerts.reset(2, "again") == []


@pytest.mark.parametrize("cut", range(12))
def test_saved_and_loaded_continues_the_same(cut):
    text = "xx.xxx.x...x"
    whole, first, second = (table(for_=3, keep=2) for _ in range(3))
    expected = play(whole, text)
    before = play(first, text[:cut])
    second.load({k: v.copy() for k, v in first.state().items()}, ["s"])
    assert before + play(second, text[cut:], start=cut + 1) == expected

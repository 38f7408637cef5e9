"""A replayed log is judged as the job would have been judged live."""

import io
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest

from stabilizer.agent.control.snapshots import Snapshot, SnapshotRing
from stabilizer.agent.integrations.settings import JobSettings
from stabilizer.logs.csv_table import CsvParser
from stabilizer.logs.stream import steps_of
from stabilizer.protocol.batches import SnapshotInfo
from stabilizer.protocol.commands import CommandKind
from stabilizer.protocol.decisions import DecisionReason, Mode
from stabilizer.replay.job import KEPT_SNAPSHOTS, SNAPSHOT_EVERY, ReplayedJob, SimulatedRing, replay
from stabilizer.rules.loader import load_rules

RULES = load_rules("""
rules:
  - name: lost
    select: {metric: loss, source: null}
    detect: {nonfinite: {}}
    severity: divergence
    inhibit_after: {}
  - name: high
    select: {metric: loss, source: null}
    detect: {threshold: {above: 10}}
    for: 2
    severity: divergence
  - {name: whole, select: {metric: grad_norm, module: null}, detect: {threshold: {above: 5}},
     severity: notice, inhibit_after: {}}
  - {name: module, select: {metric: grad_norm, kind: fc2}, detect: {threshold: {above: 5}},
     severity: notice, inhibit_after: {}}
policy:
  mode: propose
  ladder: [{rollback: {margin: 0, skip: 3}}, {reduce_lr: {factor: 0.5, steps: 20}}, pause]
  act_on: {any: ["severity:divergence"]}
  healthy_after: 5
  quiet: 3
  wait: 5
  guards: {budget: {rollback: 3, per_steps: 2000}, cooldown: 0, watch: 10}
""")


def parse(text):
    parser = CsvParser()
    return [*parser.feed(text.encode()), *parser.close()]


def log(losses, **columns):
    out = io.StringIO()
    out.write(",".join(["attempt", "step", "loss", *columns]) + "\n")
    for index, loss in enumerate(losses):
        cells = [str(values[index]) for values in columns.values()]
        out.write(",".join(["1", str(index + 1), str(loss), *cells]) + "\n")
    return out.getvalue()


def judged(text, mode=Mode.AUTO):
    return replay(steps_of(parse(text)), RULES, mode)


def test_a_divergence_is_commanded_and_its_command_applied():
    result = judged(log([2.0] * 100 + [20.0] * 10))
    first = result.proposals[0]
    assert (first.step, first.kind, first.incident) == (102, CommandKind.ROLLBACK, 1)
    assert "roll back to step 75" in first.text  # 100 was not seen for 5 steps without an alert
    assert first.rules == ("high",)
    assert DecisionReason.WATCHING in {note.reason for note in result.decisions}
    assert (result.rows, result.first_step, result.last_step, result.attempts) == (110, 1, 110, 1)


def test_nothing_is_commanded_in_other_modes():
    text = log([2.0] * 100 + [20.0] * 10)
    assert not judged(text, Mode.OBSERVE).proposals
    assert len(judged(text, Mode.PROPOSE).proposals) == 1


def test_a_module_is_not_the_whole_model():
    columns = {"grad_norm": [1.0] * 20, "grad_norm/fc2/layer0": [1.0] * 10 + [50.0] * 10}
    assert {alert.rule for alert in judged(log([2.0] * 20, **columns)).alerts} == {"module"}
    columns = {"grad_norm": [1.0] * 10 + [50.0] * 10, "grad_norm/fc2/layer0": [1.0] * 20}
    assert {alert.rule for alert in judged(log([2.0] * 20, **columns)).alerts} == {"whole"}


def test_an_alert_knows_when_it_fired_and_was_resolved():
    (alert,) = judged(log([2.0] * 5 + [20.0] * 3 + [2.0] * 5), Mode.OBSERVE).alerts
    assert (alert.pending_step, alert.step, alert.resolved_step) == (6, 7, 9)


def test_a_restart_in_the_log_begins_an_attempt_without_snapshots():
    before = "".join(f"1,{step},2.0\n" for step in range(1, 111))
    after = "".join(f"2,{step},{2 if step < 153 else 20}\n" for step in range(101, 160))
    result = judged("attempt,step,loss\n" + before + after)
    assert result.attempts == 2
    first = result.proposals[0]
    assert "roll back to step 125" in first.text  # none of those before the restart
    assert first.step == 154


def test_the_same_log_gives_the_same_result_bit_for_bit():
    rng = np.random.default_rng(0)
    text = log((2 + rng.standard_normal(300) * 4).round(3))
    assert judged(text) == judged(text)


def test_steps_of_modules_are_judged_with_those_of_the_loss():
    job = ReplayedJob(RULES)
    steps = list(steps_of(parse("step,loss,grad_norm/fc2/layer0\n1,2,9\n2,2,\n")))
    assert [len(step.frames) for step in steps] == [2, 1]
    for step in steps:
        job.show(step)
    assert [alert.rule for alert in job.finish().alerts] == ["module"]


def test_the_ring_is_that_of_the_agent_by_default():
    defaults = {field.name: field.default for field in fields(JobSettings)}
    assert defaults["snapshot_every"] == SNAPSHOT_EVERY
    assert defaults["keep_snapshots"] == KEPT_SNAPSHOTS


@pytest.mark.parametrize("capacity", [1, 3, 6])
def test_the_ring_keeps_what_the_agent_keeps(capacity):
    rng = np.random.default_rng(capacity)
    ring, simulated = SnapshotRing(capacity, 2**40), SimulatedRing(10, capacity)
    healthy: tuple[str, ...] = ()
    for before, step in pairwise(range(0, 1000, 10)):
        is_finite = bool(rng.random() > 0.2)
        ring.healthy = healthy
        ring.protect(ring.newest_healthy())
        ring.make_room()
        name = ring.next_id(step)
        info = SnapshotInfo(id=name, attempt=1, step=step, finite=is_finite, num_bytes=is_finite)
        ring.add(Snapshot(info, object() if is_finite else None))
        simulated.reach(step, 1, since=before, finite=is_finite, healthy=healthy)
        held = [(info.step, info.finite) for info in ring.inventory()]
        assert [(info.step, info.finite) for info in simulated.held] == held
        finite = [info.id for info in ring.inventory() if info.finite]
        healthy = (*healthy, *finite[:1]) if rng.random() < 0.3 else healthy


def test_a_log_of_every_tenth_step_still_has_snapshots_of_every_25th():
    ring = SimulatedRing()
    for before, step in pairwise(range(0, 1010, 10)):
        ring.reach(step, 1, since=before, finite=True, healthy=())
    assert [info.step for info in ring.held] == [875, 900, 925, 950, 975, 1000]

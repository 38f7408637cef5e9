from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabilizer.errors import ConfigurationError, InvalidInputError
from stabilizer.protocol.batches import Marker, MarkerKind, SnapshotInfo
from stabilizer.protocol.commands import CommandState, RollbackParameters
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.series import Catalog
from stabilizer.rules.brain import Brain, PolicyContext
from stabilizer.rules.loader import default_rules, load_rules

CALM = (1.0, 1.0)
LEARNING = [
    {
        "name": "nan",
        "select": {"metric": "loss"},
        "detect": {"nonfinite": {}},
        "severity": "divergence",
        "inhibit_after": {},
    },
    {
        "name": "warm",
        "select": {"metric": "loss"},
        "detect": {"robust_zscore": {"window": 16, "above": 6}},
        "for": 2,
        "keep_firing_for": 3,
        "severity": "notice",
    },
    {
        "name": "creep",
        "select": {"metric": "loss"},
        "detect": {"drift": {"window": 24, "above": 0.05, "smooth": 4}},
        "for": 5,
        "severity": "divergence",
    },
    {
        "name": "inner",
        "select": {"metric": "activation_rms"},
        "detect": {"robust_zscore": {"window": 16, "above": 6, "scale": "log"}},
        "quorum": 2,
        "for": 3,
        "severity": "precursor",
    },
    {
        "name": "entropy",
        "select": {"metric": "attention_entropy"},
        "detect": {"collapse": {"window": 16, "below": 0.3}},
        "severity": "precursor",
    },
    {
        "name": "inverse",
        "select": {"metric": "z_loss"},
        "detect": {"spike": {"window": 8, "above": 6, "direction": "both"}},
        "severity": "notice",
    },
    {
        "name": "lost",
        "select": {"metric": "risk"},
        "detect": {"threshold": {"above": 0.5}},
        "severity": "notice",
    },
]
SERIES = (
    "loss",
    'activation_rms{layer="0"}',
    'activation_rms{layer="1"}',
    "attention_entropy",
    "z_loss",
)


def script(seed: int, steps: int) -> np.ndarray:
    """Five series with every kind of trouble in them."""
    rng = np.random.default_rng(seed)
    rows = np.array([2.0, 1.0, 1.0, 0.6, 17.0]) + 0.01 * rng.standard_normal((steps, 5))
    for _ in range(6):
        start, length = int(rng.integers(30, steps)), int(rng.integers(2, 30))
        end, column = min(steps, start + length), int(rng.integers(0, 5))
        kind = rng.integers(0, 4)
        if kind == 0:
            rows[start:end, column] *= 3
        elif kind == 1:
            rows[start:end, column] *= 1 + 0.02 * np.arange(end - start)
        elif kind == 2:
            rows[start, column] = rng.choice([np.nan, np.inf, -np.inf])
        else:
            rows[start:end, 1:3] *= 8
            rows[start + 2 : end, 0] *= 1.5
    return rows


class Story:
    """Plays a script; a command is carried out three steps after it was issued, or fails."""

    def __init__(self, drive, rules, seed: int) -> None:
        self.run = drive(rules(LEARNING), *SERIES)
        self.rows = script(seed, 160)
        self.due: list[tuple[int, object]] = []
        self.told: list[str] = []
        self.index = 0

    def step(self) -> None:
        run = self.run
        num_commands, start = len(run.commands), len(run.outcomes)
        row = self.rows[self.index]
        mask = [value if (self.index + i) % 7 else None for i, value in enumerate(row)]
        run.step(*mask)
        self.index += 1
        if self.index % 5 == 0:
            run.snapshots(run.at)
        if self.index == 77:
            run.brain.marker(Marker(kind=MarkerKind.PHASE_CHANGE, step=run.at))
        self.due += [(self.index + 3, intent) for intent in run.commands[num_commands:]]
        while self.due and self.due[0][0] <= self.index:
            _, intent = self.due.pop(0)
            if self.index % 4 == 0:
                run.command(CommandState.FAILED, intent)
                continue
            run.command(CommandState.APPLIED, intent)
            if isinstance(intent.parameters, RollbackParameters):
                run.rewind(intent.parameters.target.step)
        self.told += [repr(out) for out in run.outcomes[start:] if out]

    def finish(self) -> Story:
        while self.index < len(self.rows):
            self.step()
        return self


class TestContinuation:
    @pytest.mark.parametrize("seed", range(6))
    def test_saved_and_loaded_at_every_tenth_step_changes_nothing(self, drive, rules, seed):
        straight, broken = Story(drive, rules, seed).finish(), Story(drive, rules, seed)
        while broken.index < len(broken.rows):
            broken.step()
            if broken.index % 10 == seed:
                fresh = Brain(rules(LEARNING))
                fresh.load_state(broken.run.brain.state_dict())
                fresh.add_catalog(broken.run.catalog)
                broken.run.brain = fresh
        assert broken.told == straight.told
        assert broken.run.brain.state_dict() == straight.run.brain.state_dict()

    def test_script_reaches_every_state(self, drive, rules):
        told = " ".join(
            text for seed in range(6) for text in Story(drive, rules, seed).finish().told
        )
        words = "pending firing resolved acting watching resolve relapse command_failed rollback"
        assert [word for word in words.split() if f"'{word}'" not in told] == []

    @pytest.mark.parametrize(
        "moment", ["healthy", "pending", "firing", "acting", "awaiting", "watching", "resolved"]
    )
    def test_cut_at_a_chosen_moment(self, drive, rules, moment):
        def until(name: str, run) -> None:
            run.snapshots(0, 10, 20)
            run.run(40, *CALM)
            for at, values in {"pending": (2.5, 20.0), "firing": (4.0, 20.0)}.items():
                if name == "healthy":
                    return
                run.step(*values)
                if name == at:
                    return
            run.run(2, 4.0, 20.0)
            if name == "acting":
                return
            run.command(CommandState.APPLIED)
            if name == "awaiting":
                return
            run.rewind(run.commands[-1].parameters.target.step)
            run.run(3, *CALM)
            if name == "resolved":
                run.run(60, *CALM)

        def finish(run) -> list[str]:
            start = len(run.outcomes)
            run.run(3, 4.0, 20.0)
            run.run(30, *CALM)
            run.run(3, math.nan, 1.0)
            return [repr(out) for out in run.outcomes[start:]]

        ladder = [{"rollback": {"margin": 5}}, {"reduce_lr": {"factor": 0.5}}, "pause"]
        file = rules(ladder=ladder)
        one, two = drive(file), drive(file)
        until(moment, one)
        until(moment, two)
        fresh = Brain(file)
        fresh.add_catalog(two.catalog)
        fresh.load_state(two.brain.state_dict())
        two.brain = fresh
        assert finish(two) == finish(one)


class TestSavedState:
    def test_state_of_other_rules_is_refused(self, drive, rules):
        with pytest.raises(ConfigurationError, match="belongs to rules"):
            Brain(default_rules()).load_state(drive().brain.state_dict())

    @pytest.mark.parametrize("length", [0, 3, 6, 20, -1])
    def test_damaged_state_is_refused_and_nothing_changes(self, drive, length):
        run = drive()
        run.run(5, 4.0, 1.0)
        state = run.brain.state_dict()
        with pytest.raises(ConfigurationError):
            run.brain.load_state(state[:length])
        assert run.brain.state_dict() == state

    def test_state_is_compact(self):
        brain = Brain(default_rules())
        catalog = Catalog.of(
            f'activation_rms{{kind="o_proj",layer="{i}",tower="language"}}' for i in range(2000)
        )
        brain.add_catalog(catalog)
        for step in range(1, 200):
            brain.observe(catalog.id, step, np.full(2000, 1.0, np.float32))
        assert len(brain.state_dict()) < 100_000


class TestObserve:
    def test_unknown_catalog(self, rules):
        with pytest.raises(InvalidInputError, match="not known"):
            Brain(rules()).observe("0" * 32, 1, np.zeros(1, np.float32))

    @pytest.mark.parametrize(("width", "mask"), [(1, 1), (2, 3), (3, 2)])
    def test_frame_of_another_shape(self, drive, width, mask):
        run = drive()
        with pytest.raises(InvalidInputError, match="shape"):
            run.brain.observe(
                run.catalog.id, 1, np.zeros(width, np.float32), np.ones(mask, np.bool_)
            )

    def test_frame_seen_before_is_left_out(self, drive):
        run = drive()
        frame = np.array([4.0, 1.0], np.float32)
        first = run.brain.observe(run.catalog.id, 5, frame)
        assert first.alerts
        assert not run.brain.observe(run.catalog.id, 5, frame)
        assert not run.brain.observe(run.catalog.id, 4, frame)

    def test_catalog_added_twice_changes_nothing(self, drive):
        run = drive()
        run.run(3, *CALM)
        before = run.brain.state_dict()
        run.brain.add_catalog(run.catalog)
        assert run.brain.state_dict() == before

    def test_attempt_that_has_begun_changes_nothing(self, drive):
        run = drive()
        run.run(3, 4.0, 1.0)
        assert not run.brain.begin_attempt(1, 0, MarkerKind.ROLLBACK)

    def test_new_attempt_ends_alerts_and_says_why(self, drive):
        run = drive()
        run.run(2, 4.0, 1.0)
        out = run.brain.begin_attempt(2, 0, MarkerKind.ROLLBACK)
        states = {(change.key.rule, str(change.state)) for change in out.alerts}
        assert states == {("warm", "resolved"), ("high", "inactive")}
        assert all("rollback" in change.message for change in out.alerts)

    def test_broken_rule_stops_no_other(self, drive, monkeypatch):
        run = drive()
        monkeypatch.setattr(run.brain._rules[0]._detector, "update", None)
        run.run(3, 4.0, 1.0)
        assert run.decisions[-1] == "act/divergence"
        assert [health.ok for health in run.brain.rule_health] == [False, True, True, True]


class TestBurst:
    def test_precursor_asks_for_a_burst_that_ends(self, drive):
        run = drive()
        run.run(9, *CALM)
        assert run.brain.sampling_plan.burst_until_step is None
        run.step(1.0, 20.0)
        assert run.brain.sampling_plan.burst_until_step == 60
        run.run(50, *CALM)
        assert run.brain.sampling_plan.burst_until_step is None

    def test_alert_that_fires_for_long_does_not_burst_forever(self, drive):
        run = drive()
        run.run(60, 1.0, 20.0)
        assert run.brain.sampling_plan.burst_until_step is None

    def test_notice_asks_for_none(self, drive):
        run = drive()
        run.step(2.5, 1.0)
        assert run.brain.sampling_plan.burst_until_step is None


class TestSnapshots:
    def test_healthy_after_steps_without_alert(self, drive):
        run = drive()
        run.snapshots(5)
        run.run(9, *CALM)
        assert run.brain.healthy_snapshots == ()
        run.step(*CALM)
        assert run.brain.healthy_snapshots == ("s1-5",)

    @pytest.mark.parametrize(
        ("alert_at", "healthy"), [(4, True), (5, False), (10, False), (12, True)]
    )
    def test_alert_at_or_soon_after_spoils_it(self, drive, alert_at, healthy):
        run = drive()
        run.snapshots(5)
        for step in range(1, 30):
            run.step(2.5 if step == alert_at else 1.0, 1.0)
        # an alert is over one step after it fired, so step 4 reaches 5
        assert bool(run.brain.healthy_snapshots) == (healthy and alert_at != 4)

    @pytest.mark.parametrize(("loss", "healthy"), [(2.5, ("s1-20",)), (4.0, ())])
    def test_only_a_divergence_spoils_what_comes_long_after_its_start(self, drive, loss, healthy):
        run = drive()
        run.snapshots(12, 20)
        run.run(10, *CALM)
        run.run(20, loss, 1.0)
        assert run.brain.healthy_snapshots == healthy

    def test_pending_alert_that_never_fires_delays_only(self, drive, rules):
        slow = rules([{**_rule("warm"), "for": 10}])
        run = drive(slow)
        run.snapshots(5)
        run.run(9, *CALM)
        run.run(3, 4.0, 1.0)
        assert run.brain.healthy_snapshots == ()
        run.run(2, *CALM)
        assert run.brain.healthy_snapshots == ("s1-5",)

    def test_not_finite_is_never_healthy(self, drive):
        run = drive()
        run.snapshots(5, finite=False)
        run.run(30, *CALM)
        assert run.brain.healthy_snapshots == ()

    def test_abandoned_branch_is_left_out(self, drive):
        run = drive()
        run.snapshots(5, 15)
        run.run(30, *CALM)
        assert run.brain.healthy_snapshots == ("s1-5", "s1-15")
        run.rewind(10)
        assert run.brain.healthy_snapshots == ("s1-5",)
        run.snapshots(15)
        run.run(10, *CALM)
        assert run.brain.healthy_snapshots == ("s1-5", "s2-15")

    def test_dropped_by_the_job_is_no_longer_named(self, drive):
        run = drive()
        run.snapshots(5)
        run.run(30, *CALM)
        run.brain.set_snapshots([])
        assert run.brain.healthy_snapshots == ()

    def test_alert_of_the_abandoned_branch_does_not_spoil_the_new_one(self, drive):
        run = drive()
        run.snapshots(8)
        run.run(9, *CALM)
        run.run(3, 2.5, 1.0)
        run.rewind(8)
        run.run(6, *CALM)
        assert run.brain.healthy_snapshots == ("s1-8",)

    def test_target_is_the_newest_deep_enough(self, drive, rules):
        run = drive(rules(ladder=[{"rollback": {"margin": 12}}, "pause"]))
        run.snapshots(0, 10, 20, 30)
        run.run(40, *CALM)
        run.run(3, 4.0, 1.0)
        assert run.commands[-1].parameters.target.snapshot_id == "s1-20"

    def test_none_deep_enough_takes_the_oldest(self, drive, rules):
        run = drive(rules(ladder=[{"rollback": {"margin": 100}}, "pause"]))
        run.snapshots(20, 30)
        run.run(40, *CALM)
        run.run(3, 4.0, 1.0)
        assert run.commands[-1].parameters.target.snapshot_id == "s1-20"

    def test_rung_without_snapshot_falls_back_to_its_cut(self, drive, rules):
        both = {"rollback": {"margin": 5}, "reduce_lr": {"factor": 0.5}}
        run = drive(rules(ladder=[both, "pause"]))
        run.run(3, 4.0, 1.0)
        assert run.decisions[-2:] == ["hold/no_healthy_snapshot", "act/divergence"]
        assert run.commands[-1].parameters.kind == "reduce_lr"


def _rule(name: str) -> dict:
    detect = {"threshold": {"above": 2}}
    return {"name": name, "select": {"metric": "loss"}, "detect": detect, "severity": "divergence"}


ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=40, deadline=None)
@given(
    frames=st.lists(st.tuples(ANY, ANY, ANY, ANY, ANY), min_size=1, max_size=80),
    gaps=st.lists(st.integers(0, 40), min_size=1, max_size=10),
    masks=st.integers(0, 31),
)
def test_any_stream_is_survived_by_all_rules(frames, gaps, masks):
    catalog = Catalog.of(SERIES)
    brain = Brain(load_rules(_text(), "rules"))
    brain.add_catalog(catalog)
    step = 0
    for index, row in enumerate(frames):
        step += gaps[index % len(gaps)]
        present = np.array([(masks >> i) & 1 == 0 or index % 2 == 0 for i in range(5)])
        brain.observe(catalog.id, step, np.array(row, np.float32), present)
        out = brain.decide(step, PolicyContext(Mode.AUTO))
        for intent in out.commands:
            assert intent.key
        if index % 9 == 0:
            info = SnapshotInfo(id=str(step), attempt=1, step=step, finite=index % 2 == 0)
            brain.set_snapshots([info])
    assert all(health.ok for health in brain.rule_health)
    brain.load_state(brain.state_dict())
    brain.end_run(step)


def _text() -> str:
    policy = {
        "ladder": [{"reduce_lr": {"factor": 0.5}}, {"rollback": {}}, "pause"],
        "act_on": {"any": ["severity:divergence"], "after_wait": ["severity:notice"]},
        "guards": {"cooldown": 3, "watch": 5},
        "wait": 4,
        "healthy_after": 3,
    }
    fast = json.loads(json.dumps(LEARNING))
    for rule in fast:
        for options in rule["detect"].values():
            if "window" in options:
                options.update(window=8, min_samples=3)
    return json.dumps({"rules": fast, "policy": policy})


def test_health_says_why_a_rule_cannot_judge_yet(rules):
    parts = [
        {**LEARNING[1], "name": "learning"},
        {**LEARNING[1], "name": "elsewhere", "select": {"metric": "z_loss"}},
        {
            "name": "rising",
            "select": {"metric": "loss"},
            "detect": {"rise": {}},
            "severity": "notice",
        },
    ]
    brain = Brain(rules(parts, act_on={}))
    catalog = Catalog.of(["loss"])
    brain.add_catalog(catalog)
    notes = []
    for step in range(1, 101):
        frame = np.array([1 + 0.01 * math.sin(step * step)], np.float32)
        brain.observe(catalog.id, step, frame)
        if step in {4, 40, 100}:
            notes.append([health.note for health in brain.rule_health])
    assert notes[0] == ["learning 4 of 8", "selects nothing", "learning 0 of 12"]
    assert notes[1] == ["", "selects nothing", "learning 6 of 12"]
    assert notes[2] == ["", "selects nothing", ""]

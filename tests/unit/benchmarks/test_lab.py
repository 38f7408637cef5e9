"""The laboratory: its copies of a job train as a job does, and its truth is what it says."""

import csv
import math

import numpy as np
import pytest
import torch

from benchmarks.lab import __main__ as command
from benchmarks.lab.faults import FAULTS, BadData, FreshWeights, LrJump, LrSchedule, NanGradient
from benchmarks.lab.groups import run_group
from benchmarks.lab.layout import Layout
from benchmarks.lab.lookalikes import LOOKALIKES, ScalerSkips
from benchmarks.lab.measuring import SAMPLE_EVERY, WatchedRun
from benchmarks.lab.members import Change, Member
from benchmarks.lab.optimizers import AdamW, Moments, Sgd
from benchmarks.lab.oracle import ACTIONS
from benchmarks.lab.outcomes import COLUMNS, summarise, verdict
from benchmarks.lab.plain import run_plain
from benchmarks.lab.plan import Group, plan
from benchmarks.lab.storage import list_runs, load_run, save_run
from benchmarks.lab.training import Ensemble, Setting, World
from stabilizer.agent.probes.probe_set import ProbeSet
from stabilizer.logs.formats import read_rows
from stabilizer.logs.names import series_of

STEPS = 44
ONSET = 22
NEVER = 10**6


@pytest.fixture(scope="module")
def world():
    return World(Setting("gpt", "adamw", "fp32", 2, steps=STEPS))


def nothing():
    return Change(NEVER, np.random.default_rng(0))


def start(world, change=None, **fields):
    return world.first_state(Member(change or nothing(), **fields))


def test_the_gradients_of_many_copies_are_those_of_the_model(world):
    states = [start(world, position=position) for position in (0, 60)]
    together = Ensemble(world, states)
    together.compute(world.read(together.members)[0])
    for number, state in enumerate(states):
        alone = WatchedRun(world, state)
        alone.compute(world.read(alone.members)[0])
        torch.testing.assert_close(
            together.gradients[number], alone.gradients[0], atol=1e-5, rtol=1e-3
        )
        alone.close()


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        (AdamW, lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)),
        (Sgd, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    ],
)
def test_an_optimizer_on_rows_is_that_of_torch(own, theirs):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 4)
    optimizer = own(Layout(model), decay=0.0)
    rows = torch.stack([torch.cat([p.detach().flatten() for p in model.parameters()])] * 2)
    moments = Moments({n: torch.zeros_like(rows) for n in optimizer.names}, torch.zeros(2))
    peer = theirs(model.parameters())
    for _ in range(4):
        gradient = torch.randn(rows.shape[1])
        rows -= 0.01 * optimizer.update(rows, gradient.expand_as(rows).clone(), moments)
        model.weight.grad, model.bias.grad = gradient[:12].view(4, 3), gradient[12:]
        peer.step()
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(rows, torch.stack([expected] * 2), atol=1e-6, rtol=1e-5)


def test_a_position_of_the_stream_names_the_same_samples_for_every_copy(world):
    members = [Member(nothing(), position=30), Member(nothing(), step=9, position=30)]
    members.append(Member(nothing(), position=36))
    batch, sources = world.read(members)
    assert torch.equal(batch["tokens"][0], batch["tokens"][1])
    assert not torch.equal(batch["tokens"][0], batch["tokens"][2])
    assert set(sources.ravel().tolist()) <= {0, 1}, "the third source joins by a change only"


def test_bad_data_is_met_again_and_skipped_with_its_positions(world):
    change = BadData(ONSET, np.random.default_rng(0))
    good = world.read([Member(nothing(), position=ONSET * world.batch)])[0]["tokens"]
    bad = world.read([Member(change, position=ONSET * world.batch)])[0]["tokens"]
    assert not torch.equal(good, bad)
    behind = (ONSET + int(change.amount)) * world.batch
    skipped = world.read([Member(change, step=ONSET, position=behind)])[0]["tokens"]
    assert torch.equal(skipped, world.read([Member(nothing(), position=behind)])[0]["tokens"])


def test_a_change_of_the_state_is_undone_by_its_snapshot_and_does_not_strike_again(world):
    ensemble = Ensemble(world, [start(world, LrJump(1, np.random.default_rng(0)))])
    ensemble.step()
    before = ensemble.state()
    rate = ensemble.rate(ensemble.members[0])
    ensemble.step()
    assert ensemble.rate(ensemble.members[0]) > 5 * rate
    before.member.struck = True
    again = Ensemble(world, [before])
    again.step()
    assert again.rate(again.members[0]) < 2 * rate


def test_a_schedule_that_is_too_high_is_met_again(world):
    change = LrSchedule(5, np.random.default_rng(0))
    ensemble = Ensemble(world, [start(world, change, step=6, struck=True)])
    quiet = Ensemble(world, [start(world, step=6)])
    ratio = ensemble.rate(ensemble.members[0]) / quiet.rate(quiet.members[0])
    assert ratio == pytest.approx(change.amount)


def test_a_step_that_overflows_is_skipped_and_halves_the_scale():
    world = World(Setting("gpt", "adamw", "fp16", 2, steps=STEPS))
    change = ScalerSkips(0, np.random.default_rng(0))
    ensemble = Ensemble(world, [start(world, change), start(world)])
    ensemble.members[0].held.scale = 2.0**40
    weights = ensemble.weights.clone()
    result = ensemble.step()
    assert result.skipped.tolist()[0] is True
    assert torch.equal(ensemble.weights[0], weights[0])
    assert ensemble.moments.counts[0] == 0
    assert ensemble.members[0].held.scale == result.scales[0] / 2


def test_a_nan_reaches_every_weight(world):
    ensemble = Ensemble(world, [start(world, NanGradient(0, np.random.default_rng(0)))])
    ensemble.step()
    assert not ensemble.weights.isfinite().any()
    assert world.evaluate(ensemble.weights) == [math.inf]


def test_what_is_measured_is_what_the_agent_sends(world):
    run = WatchedRun(world, start(world))
    for _ in range(SAMPLE_EVERY):
        run.advance()
    series = run.series()
    run.close()
    sent = {str(key) for catalog in ProbeSet(world.model).catalogs for key in catalog.series}
    names = {str(key) for key in series.keys}
    assert sent - names <= {"loss_total", "step_seconds"}
    extra = {name.partition("{")[0] for name in names - sent}
    assert extra == {"loss", "param_norm", "update_ratio", "adam_rms"}
    assert series.steps.tolist() == list(range(1, SAMPLE_EVERY + 1))
    every_step = series.present.all(axis=0)
    assert {key.metric for key, each in zip(series.keys, every_step, strict=True) if each} >= {
        *("loss", "z_loss", "grad_norm", "lr")
    }
    sampled = zip(series.keys, series.present[-1], strict=True)
    assert all(present for key, present in sampled if key.metric != "loss")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    setting = Setting("gpt", "adamw", "fp32", 2, steps=STEPS)
    group = Group(setting, (FreshWeights,), ONSET)
    runs = list(run_group(setting, group.kinds, ONSET))
    for run in runs:
        save_run(folder, run, command.facts_of(run, group))
    return folder, runs


def test_a_stored_run_holds_its_twins_rows_before_its_own(stored):
    folder, runs = stored
    fresh = load_run(folder, runs[1].name)
    twin = load_run(folder, runs[0].name)
    assert fresh.series.steps.tolist() == list(range(1, STEPS + 1))
    loss = [str(key) for key in fresh.series.keys].index("loss")
    np.testing.assert_array_equal(
        fresh.series.values[:ONSET, loss], twin.series.values[:ONSET, loss]
    )
    np.testing.assert_array_equal(fresh.series.values[ONSET:, loss], runs[1].series.values[:, loss])
    assert fresh.series.values[ONSET, loss] > 1.05 * twin.series.values[ONSET, loss]
    assert fresh.curves[""] == pytest.approx(runs[1].curve)


def test_every_point_of_the_grid_has_every_rollback_and_cut(stored):
    folder, runs = stored
    starts = load_run(folder, runs[1].name).facts["starts"]
    for later in (0, 10):
        for action in ACTIONS:
            assert action.every > 1 or f"{action.name}_{later}" in starts
    assert starts["rollback_10"] == 0, "the newest snapshot from well before the onset"
    assert starts["cut_10"] == ONSET + 10
    undone = runs[1].truth.find("rollback", ONSET + 10)
    assert undone is runs[0].truth.find("rollback", ONSET), "nothing is left of the fault"


def test_fresh_weights_hurt_and_a_rollback_rescues(stored):
    folder, runs = stored
    twin, fresh = (load_run(folder, run.name) for run in runs[:2])
    row = summarise(fresh, twin)
    assert set(row) <= set(COLUMNS)
    assert row["untouched"] > 1.05
    assert row["rollback_10"] == pytest.approx(1.0, abs=0.03)
    assert row["verdict"] in ("act", "either")
    assert row["saved_10"] > 0.8


def test_plain_runs_train_as_watched_ones_do(stored):
    _, watched = stored
    setting = Setting("gpt", "adamw", "fp32", 2, steps=STEPS)
    twin, fresh = run_plain(setting, (FreshWeights, ScalerSkips), ONSET)
    assert [twin.name, fresh.name] == [run.name for run in watched], "what does not apply is left"
    assert twin.series.steps.tolist() == list(range(1, STEPS + 1))
    assert fresh.series.steps.tolist() == list(range(ONSET + 1, STEPS + 1))
    for plain, run in zip((twin, fresh), watched, strict=True):
        for metric in ("loss", "grad_norm"):
            own, theirs = (
                each.series.values[:, [str(key) for key in each.series.keys].index(metric)]
                for each in (plain, run)
            )
            np.testing.assert_allclose(own[:8], theirs[:8], rtol=0.01)


def test_exported_runs_are_logs_that_the_backtest_reads(stored, tmp_path):
    folder, runs = stored
    command.export(folder, tmp_path, "fit")
    path = tmp_path / "runs" / f"{runs[1].name}.csv"
    rows = list(read_rows(path))
    assert len(rows) == STEPS
    sent = {series_of(column) for row in rows for column in row.columns}
    assert sent == set(load_run(folder, runs[1].name).series.keys)
    with (tmp_path / "events.csv").open() as file:
        events = list(csv.DictReader(file))
    assert [event["run"] for event in events] == [runs[1].name], "healthy runs have no event"
    assert events[0]["step_start"] == str(ONSET)


def test_a_healthy_run_is_left_alone_whatever_would_have_been_better():
    assert verdict("healthy", 1.0, 0.9) == "ignore"
    assert verdict("fault", 1.02, 1.0) == "ignore"
    assert verdict("fault", 1.06, 1.0) == "either"
    assert verdict("fault", math.inf, 1.04) == "act"
    assert verdict("fault", 1.5, 1.4) == "beyond_rescue"


def test_the_command_continues_where_it_was(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--rounds", "1", "--steps", "30", "--family", "gpt"]
    group = next(iter(plan(1, 30)))
    few = Group(group.setting, group.kinds[:1], group.onset)
    command.generate(tmp_path, few)
    assert "2 of 2 runs" in capsys.readouterr().out
    command.generate(tmp_path, few)
    assert capsys.readouterr().out == "", "a group that is done is not trained again"
    for mark in (tmp_path / "groups").iterdir():
        mark.unlink()
    command.generate(tmp_path, few)
    assert "0 of 2 runs" in capsys.readouterr().out
    command.main([*arguments, "--table"])
    assert (tmp_path / "outcomes.csv").read_text().count("\n") == 1 + len(list_runs(tmp_path))


def test_the_plan_covers_every_change_in_both_splits():
    groups = list(plan())
    assert len({group.setting.name for group in groups}) == len(groups)
    for families in (("gpt", "vit"), ("encoder_decoder", "idefics")):
        seen = {k for g in groups if g.setting.family in families for k in g.kinds}
        assert seen == {*FAULTS, *LOOKALIKES}

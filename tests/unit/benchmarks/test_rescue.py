"""The closed loop: a watched job trains as an unwatched one, obeys, and peers do what they do."""

import math

import numpy as np
import pytest
import torch

from benchmarks.lab.faults import FreshWeights, NanGradient
from benchmarks.lab.groups import change_of, healthy_change
from benchmarks.lab.members import Member
from benchmarks.lab.oracle import outcome
from benchmarks.lab.training import Ensemble, Setting, SingleRun, World
from benchmarks.rescue.peers import (
    CHECKPOINT_EVERY,
    PEERS,
    Clipping,
    GuardedRuns,
    RestoreOnBound,
    SkipStep,
    Unprotected,
    ZClip,
)
from benchmarks.rescue.scenarios import CAUSES, list_scenarios
from benchmarks.rescue.watched import WatchedJob
from stabilizer.agent.control.snapshots import Snapshot

STEPS = 30


@pytest.fixture(scope="module")
def world():
    return World(Setting("gpt", "adamw", "fp32", 2, steps=STEPS))


def test_watching_a_job_changes_no_bit_of_it(world):
    watched = WatchedJob(world, world.first_state(Member(healthy_change(world.setting))))
    for _ in range(4):
        watched.advance()
    watched.finish()
    alone = SingleRun(world, world.first_state(Member(healthy_change(world.setting))))
    for _ in range(4):
        alone.step()
    assert torch.equal(watched.weights, alone.weights)
    assert watched.interventions == 0


def test_a_rollback_restores_and_skips_and_the_fault_does_not_strike_again(world):
    job = WatchedJob(world, world.first_state(Member(change_of(world.setting, FreshWeights, 2))))
    job.advance()
    state = job.state()
    snapshot = job._take_snapshot("step1-1", 1)
    for _ in range(3):
        job.advance()
    skipped = job._commands.restore(snapshot, 5)
    assert skipped == 5 * world.batch
    assert job.members[0].step == 1
    assert job.members[0].position == state.member.position + skipped
    assert torch.equal(job.weights[0], state.weights)
    assert torch.equal(job.moments.rows["exp_avg"][0], state.moments.rows["exp_avg"][0])
    assert job.members[0].struck
    job.finish()


def test_a_snapshot_of_broken_weights_cannot_be_restored(world):
    job = WatchedJob(world, world.first_state(Member(change_of(world.setting, NanGradient, 0))))
    job.advance()
    snapshot = job._take_snapshot("step1-1", 1)
    assert isinstance(snapshot, Snapshot)
    assert not snapshot.info.finite
    assert snapshot.state is None
    job.finish()


def test_skip_step_leaves_out_what_olmo_core_would():
    peer = SkipStep()
    noise = np.random.default_rng(0)
    for _ in range(64):
        assert peer.factor(1 + 0.01 * noise.standard_normal(), 3.0 + 0.01 * noise.random()) == 1.0
    assert peer.factor(1.2, 3.0) == 0.0
    assert peer.factor(1.0, 5.0) == 0.0
    assert peer.factor(1.0, 3.0) == 1.0


def test_zclip_lets_usual_norms_pass_and_clips_spikes():
    peer = ZClip()
    noise = np.random.default_rng(0)
    for _ in range(60):
        peer.factor(1 + 0.1 * noise.standard_normal(), 3.0)
    assert peer.factor(1.0, 3.0) == 1.0
    clipped = 10 * peer.factor(10.0, 3.0)
    assert clipped < 1.5
    assert peer.factor(math.nan, 3.0) == 1.0


def test_clipping_and_the_bound_are_what_they_say():
    assert Clipping().factor(0.5, 3.0) == 0.5
    assert Clipping().factor(0.1, 3.0) == 1.0
    peer = RestoreOnBound()
    assert [peer.restores(4.0) for _ in range(6)] == [False] * 6
    assert [peer.restores(math.nan) for _ in range(6)] == [True] * 5 + [False]


def test_peers_run_beside_an_unprotected_job_without_touching_it(world):
    change = healthy_change(world.setting)
    alone = Ensemble(world, [world.first_state(Member(change))] * 2)
    together = GuardedRuns(world, [(change, Unprotected()), (change, Clipping())])
    for _ in range(3):
        alone.step()
        together.step()
    torch.testing.assert_close(together.weights[0], alone.weights[0])
    assert not torch.equal(together.weights[1], alone.weights[1])


def test_a_bound_restores_after_a_nan():
    world = World(Setting("gpt", "adamw", "fp32", 2, steps=CHECKPOINT_EVERY + 4))
    change = change_of(world.setting, NanGradient, CHECKPOINT_EVERY + 1)
    curves = GuardedRuns(world, [(change, Unprotected()), (change, RestoreOnBound())]).run()
    assert outcome(curves[0], world.setting.steps) == math.inf
    assert outcome(curves[1], world.setting.steps) < 4.5


def test_every_cause_is_tried_with_every_seed():
    scenarios = list(list_scenarios(3, 360))
    assert len({scenario.name for scenario in scenarios}) == len(scenarios) == 3 * len(CAUSES)
    assert len(CAUSES) >= 12
    assert set(PEERS) >= {"unprotected", "clipping", "zclip", "skip_step", "restore_on_bound"}

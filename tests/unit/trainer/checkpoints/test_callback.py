from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy

from trainer.checkpoints import CheckpointError, CheckpointStore


class Rewind(Callback):
    """What the agent does between two steps: weights and counters of an earlier step, once."""

    def __init__(self, to_step, at_step):
        self.to_step, self.at_step, self.kept = to_step, at_step, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.to_step and self.kept is None:
            self.kept = copy.deepcopy(pl_module.state_dict())
        if trainer.global_step == self.at_step:
            self.at_step = -1
            pl_module.load_state_dict(self.kept)
            progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
            progress.optimizer.step.total.completed = self.to_step


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step == self.step


@pytest.mark.parametrize("at", [3, 6, 7, 9, 14])
def test_a_resumed_job_continues_as_if_it_had_never_stopped(kit, tmp_path, at):
    whole = kit.train(steps=18, every=100)
    kit.store = CheckpointStore(tmp_path / "broken", keep=3)
    kit.train(steps=at, every=at)
    resumed = kit.train(steps=18, every=100, resume=kit.store.latest().path)
    assert resumed.losses == whole.losses[at:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_job_that_was_stopped_resumes_where_it_stopped(kit, tmp_path):
    whole = kit.train(steps=12, every=100)
    kit.store = CheckpointStore(tmp_path / "stopped")
    kit.train(StopAt(5), steps=12, every=100)
    assert kit.steps() == [(1, 5)]
    resumed = kit.train(steps=12, every=100, resume=kit.store.latest().path)
    assert resumed.losses == whole.losses[5:]


def test_with_accumulation_checkpoints_lie_between_steps(kit, tmp_path):
    whole = kit.train(steps=7, every=100, accumulate=2)
    kit.store = CheckpointStore(tmp_path / "broken")
    kit.train(steps=4, every=2, accumulate=2)
    assert kit.steps() == [(1, 2), (1, 4)]
    resumed = kit.train(steps=7, accumulate=2, resume=kit.store.latest().path)
    assert resumed.losses == whole.losses[-len(resumed.losses) :]
    assert resumed.losses[0][0] == 4


def test_it_writes_in_time_and_at_the_end_and_keeps_the_newest(kit):
    kit.train(steps=11, every=3)
    assert kit.steps() == [(1, 9), (1, 11)]
    assert all(checkpoint.is_healthy for checkpoint in kit.store.all())


def test_the_next_start_is_another_attempt(kit):
    kit.train(steps=3)
    kit.train(steps=6, resume=kit.store.latest().path)
    assert kit.steps() == [(1, 3), (2, 6)]


def test_behind_a_rewind_checkpoints_are_abandoned_and_one_is_written_at_once(kit):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            usable = [(c.attempt, c.step) for c in kit.store.usable()]
            seen.append((trainer.global_step, usable))

    kit.train(Rewind(to_step=4, at_step=8), Look(), steps=9, every=3)
    # Looked at before the step's own checkpoint is written.
    assert seen[7:] == [
        (8, [(1, 3), (1, 6)]),
        (5, [(1, 3)]),
        (6, [(1, 3), (2, 5)]),
        (7, [(2, 5), (2, 6)]),
        (8, [(2, 5), (2, 6)]),
        (9, [(2, 5), (2, 6)]),
    ]


def test_weights_that_are_not_finite_are_not_healthy(kit):
    class Spoil(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 4:
                with torch.no_grad():
                    pl_module.net[0].weight[0, 0] = float("nan")

    kit.train(Spoil(), steps=15, every=3)
    healthy = {checkpoint.step: checkpoint.is_healthy for checkpoint in kit.store.all()}
    assert healthy == {3: True, 12: False, 15: False}
    assert {c.step: c.is_finite for c in kit.store.all()} == {3: True, 12: False, 15: False}


class Word:
    """The agent's, as a test says it."""

    attempt = 1

    def __init__(self):
        self.snapshots = []

    def healthy(self):
        return self.snapshots


def test_in_a_watched_job_a_checkpoint_is_healthy_when_the_collector_says_so(kit):
    word = Word()

    class Speak(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 8:  # of another attempt, and of the time from 3 to 5
                word.snapshots = [
                    SimpleNamespace(step=6, attempt=2),
                    SimpleNamespace(step=4, attempt=1),
                ]

    kit.train(Speak(), steps=12, every=3, health=word)
    healthy = {checkpoint.step: checkpoint.is_healthy for checkpoint in kit.store.all()}
    assert healthy == {9: False, 12: False} | {3: True}


def test_a_checkpoint_that_cannot_be_written_costs_no_training(kit, caplog):
    kit.store.folder.parent.joinpath("checkpoints").write_text("a file is in the way")
    job = kit.train(steps=7, every=3)
    assert len(job.losses) == 7
    assert kit.checkpoints.failures == 4  # at steps 3, 6 and 7, and once more at the end
    assert "no checkpoint at step 3" in caplog.text


def test_one_that_cannot_be_noted_is_not_met_with_a_barrier_of_the_writing(kit, monkeypatch):
    met, barrier = [], SingleDeviceStrategy.barrier
    monkeypatch.setattr(
        SingleDeviceStrategy,
        "barrier",
        lambda self, name=None: met.append(name) or barrier(self, name),
    )
    kit.store.folder.mkdir()
    elsewhere = kit.store.folder.parent / "elsewhere"
    elsewhere.mkdir()
    (kit.store.folder / ".old.part").symlink_to(elsewhere)  # cannot be swept
    kit.train(steps=6, every=3)
    assert kit.steps() == [(1, 3), (1, 6)]
    assert kit.checkpoints.failures > 0
    assert met.count("Trainer.save_checkpoint") == 2


def test_what_broken_writes_have_left_is_gone_before_the_next_one_begins(kit):
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 0:
                seen.append(list(kit.store.folder.glob(".*.part")))
                (kit.store.folder / ".attempt-0001-step-00000099.part").mkdir()

        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            seen.append(list(kit.store.folder.glob(".*.part")))

    (kit.store.folder / ".attempt-0001-step-00000098.part").mkdir(parents=True)
    kit.train(Look(), steps=3, every=3)
    assert seen == [[], []]


def test_a_write_that_fails_leaves_nothing_behind(kit, tmp_path):
    class Odd(Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            checkpoint["odd"] = torch.zeros(3).to_sparse()  # no tensor that safetensors can hold

    job = kit.train(Odd(), steps=4, every=3)
    assert len(job.losses) == 4
    assert kit.checkpoints.failures == 3
    assert list(kit.store.folder.iterdir()) == []


def test_a_resume_abandons_what_lies_behind_it_once_it_is_loaded(kit):
    kit.train(steps=6, every=3)
    first, last = kit.store.all()
    file = next((first.path / "tensors").iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        kit.train(steps=6, every=3, resume=first.path)
    assert not last.is_abandoned
    file.write_bytes(whole)
    kit.train(steps=4, every=100, resume=first.path)
    assert kit.steps() == [(1, 3), (2, 4)]


def test_a_resume_from_another_run_abandons_nothing_here(kit, tmp_path):
    here = kit.store
    kit.train(steps=6, every=3)
    kit.store = CheckpointStore(tmp_path / "other")
    kit.train(steps=3, every=3)
    foreign = kit.store.latest().path
    kit.store = here
    kit.train(steps=4, every=100, resume=foreign)
    assert [(c.attempt, c.step) for c in here.usable()] == [(1, 6), (2, 4)]

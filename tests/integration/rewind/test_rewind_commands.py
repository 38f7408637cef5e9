"""Commands to a running job: rejected before anything is touched, applied once, pause and stop."""

from __future__ import annotations

import logging
import threading
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

from stabilizer.errors import RestoreError
from stabilizer.protocol.commands import (
    CheckpointNowParameters,
    CommandState,
    PauseParameters,
    RejectReason,
    ResumeParameters,
    StopParameters,
)


def loader(kit, **options):
    return DataLoader(kit.Points(), batch_size=4, shuffle=True, **options)


def outcomes(ran):
    return [(r.state.value, r.reason and r.reason.value) for r in ran.results]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"snapshot_id": "step5-99"}, RejectReason.UNKNOWN_SNAPSHOT),
        ({"attempt": 7}, RejectReason.PAST_ATTEMPT),
    ],
)
def test_a_refused_rollback_touches_nothing(kit, options, reason):
    make = partial(loader, kit)
    reference = kit.train(make, watched=False)
    ran = kit.train(make, plan={7: lambda job: kit.rollback(job, 5, **options)})
    assert [(r.state, r.reason) for r in ran.results] == [(CommandState.REJECTED, reason)]
    kit.assert_same_from(reference, ran, 0, 0)


def test_a_command_delivered_twice_is_applied_once(kit):
    held = []

    def first(job):
        held.append(kit.rollback(job, 5))
        return [held[0], held[0]]

    ran = kit.train(partial(loader, kit), plan={7: first, 9: lambda job: held[0]})
    assert outcomes(ran) == [("applied", None)]
    assert len(kit.returned_at(ran)) == 1


def test_an_expired_command_is_answered_and_not_applied(kit):
    ran = kit.train(
        partial(loader, kit),
        plan={7: lambda job: kit.command(job, StopParameters(), ttl_seconds=-1)},
    )
    assert outcomes(ran) == [("expired", "expired")]
    assert ran.trainer.global_step == 24


def test_a_second_rollback_of_the_same_attempt_is_past(kit):
    ran = kit.train(
        partial(loader, kit),
        plan={7: lambda job: [kit.rollback(job, 5), kit.rollback(job, 0)]},
    )
    assert outcomes(ran) == [("applied", None), ("rejected", "past_attempt")]


def test_a_command_at_the_end_of_the_run_is_refused(kit):
    ran = kit.train(partial(loader, kit), plan={24: lambda job: kit.rollback(job, 20)})
    assert outcomes(ran) == [("rejected", "run_ending")]


def test_resume_without_pause_is_refused(kit):
    ran = kit.train(
        partial(loader, kit), plan={7: lambda job: kit.command(job, ResumeParameters())}
    )
    assert outcomes(ran) == [("rejected", "not_paused")]


def test_pause_blocks_until_resume_and_changes_nothing(kit):
    make = partial(loader, kit)
    paused = threading.Event()

    def pause(job):
        report = job._telemetry.set_state
        job._telemetry.set_state = lambda state, *rest: (report(state, *rest), paused.set())
        resume = kit.command(job, ResumeParameters())
        threading.Thread(target=lambda: paused.wait(30) and job.inbox.offer([resume])).start()
        return kit.command(job, PauseParameters())

    reference = kit.train(make, watched=False)
    ran = kit.train(make, plan={7: pause})
    assert outcomes(ran) == [("applied", None), ("applied", None)]
    kit.assert_same_from(reference, ran, 0, 0)


def test_a_paused_job_can_be_rewound_and_stopped(kit):
    plan = {
        7: lambda job: [
            kit.command(job, PauseParameters()),
            kit.rollback(job, 5),
            kit.command(job, StopParameters(), attempt=2),
        ]
    }
    ran = kit.train(partial(loader, kit), plan=plan)
    assert outcomes(ran) == [("applied", None)] * 3
    assert ran.trainer.global_step == 5


def test_stop_ends_at_the_boundary(kit):
    ran = kit.train(partial(loader, kit), plan={7: lambda job: kit.command(job, StopParameters())})
    assert outcomes(ran) == [("applied", None)]
    assert ran.trainer.global_step == 7
    assert len(ran.history) == 14


def test_checkpoint_now_can_be_resumed_from(kit, tmp_path):
    make = partial(loader, kit)
    options = {"default_root_dir": tmp_path, "max_epochs": 2}
    ran = kit.train(
        make, plan={8: lambda job: kit.command(job, CheckpointNowParameters())}, **options
    )
    path = Path(ran.result().read_back.checkpoint_path)
    assert path.is_relative_to(tmp_path)
    resumed = kit.train(make, ckpt_path=path, **options)
    assert resumed.history[0][0] == 8
    assert resumed.trainer.global_step == 16


def test_a_checkpoint_that_cannot_be_written_fails_and_training_continues(kit, tmp_path):
    (tmp_path / "stabilizer").write_text("in the way")
    ran = kit.train(
        partial(loader, kit),
        plan={8: lambda job: kit.command(job, CheckpointNowParameters())},
        default_root_dir=tmp_path,
    )
    assert outcomes(ran) == [("failed", None)]
    assert ran.trainer.global_step == 24


def test_a_failed_restore_stops_the_job_and_is_reported(kit):
    class Broken(kit.Net):
        def on_load_checkpoint(self, checkpoint):
            raise ValueError("no")

    seen = []

    class Listener(pl.Callback):
        def on_exception(self, trainer, module, exception):
            seen.extend(self.conductor.job.inbox._settled.values())

    listener = Listener()

    def go_back(job):
        listener.conductor = type("Holder", (), {"job": job})
        return kit.rollback(job, 5)

    with pytest.raises(RestoreError, match="half restored"):
        kit.train(partial(loader, kit), net=Broken, plan={7: go_back}, callbacks=[listener])
    assert [(r.state, r.reason) for r in seen] == [
        (CommandState.FAILED, RejectReason.RESTORE_FAILED)
    ]


def test_data_that_replays_differently_is_detected(kit):
    class Counting(torch.utils.data.Sampler):
        """Keeps a count of its own that cannot be restored."""

        def __init__(self):
            self.rounds = 0

        def __iter__(self):
            self.rounds += 1
            return iter([(i * 7 + self.rounds) % 60 for i in range(60)])

        def __len__(self):
            return 60

    make = partial(DataLoader, kit.Points(), batch_size=4, sampler=Counting())
    with pytest.raises(RestoreError, match="other indices"):
        kit.train(make, plan={7: lambda job: kit.rollback(job, 5)})


def test_a_job_that_cannot_be_rewound_is_watched_all_the_same(kit):
    class Own(kit.Net):
        def training_step(self, dataloader_iter):
            (x, y, _), _, _ = next(dataloader_iter)
            return (self.head(self.frozen(self.body(x))).squeeze(1) - y).square().mean()

    held = []

    def go_back(job):
        held.append(job)
        return kit.rollback(job, 5, snapshot_id="step5-1")

    with pytest.warns(UserWarning, match="dataloader_iter"):
        ran = kit.train(
            partial(loader, kit), net=Own, plan={7: go_back}, accumulate_grad_batches=1, val=False
        )
    assert outcomes(ran) == [("rejected", "unsupported")]
    assert len(held[0].ring) == 0


def test_a_snapshot_that_is_not_finite_is_not_restored(kit):
    class Exploding(kit.Net):
        def on_train_batch_end(self, *_):
            if self.global_step == 10:
                with torch.no_grad():
                    self.head.weight.fill_(float("nan"))

    ran = kit.train(
        partial(loader, kit), net=Exploding, plan={11: lambda job: kit.rollback(job, 10)}
    )
    assert outcomes(ran) == [("rejected", "snapshot_not_finite")]


def test_callbacks_are_rewound_with_the_job(kit, tmp_path):
    make = partial(loader, kit)

    def callbacks(folder):
        return [
            ModelCheckpoint(
                dirpath=folder, filename="{step}", monitor="mean_loss", save_top_k=2,
                every_n_train_steps=3, save_on_train_epoch_end=False, save_last=True,
            ),
            EarlyStopping("val_loss", patience=50),
        ]  # fmt: skip

    class Logged(kit.Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("mean_loss", loss)
            return loss

    class Net(kit.Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("step_loss", loss)
            return loss

    def run(folder, **options):
        made = callbacks(folder)
        made[0].monitor = "step_loss"
        ran = kit.train(make, net=Net, callbacks=made, enable_checkpointing=True, **options)
        return ran, made

    reference, (best, stopping) = run(tmp_path / "a", watched=False)
    ran, (best_again, stopping_again) = run(
        tmp_path / "b", plan={11: lambda job: kit.rollback(job, 5)}
    )
    kit.assert_same_from(reference, ran, 5, kit.returned_at(ran)[-1])
    names = {Path(path).name for path in best.best_k_models}
    assert {Path(path).name for path in best_again.best_k_models} == names
    assert all(Path(path).exists() for path in best_again.best_k_models)
    assert stopping_again.state_dict() == stopping.state_dict()


def test_fit_twice_with_one_callback_and_validate_in_between(kit, caplog):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    watcher_ran = kit.train(partial(loader, kit), max_epochs=1)
    trainer, net = watcher_ran.trainer, watcher_ran.net
    trainer.validate(net, DataLoader(kit.Points(8), batch_size=4), verbose=False)
    watcher = watcher_ran.conductor.watcher
    assert watcher.job is None
    conductor = watcher_ran.conductor
    conductor.plan = {12: lambda job: kit.rollback(job, 10)}
    trainer.fit_loop.max_epochs = 2
    trainer.fit(net, loader(kit), DataLoader(kit.Points(8), batch_size=4))
    assert [r.state for r in conductor.results] == [CommandState.APPLIED]
    assert "advance" not in vars(trainer.fit_loop.epoch_loop)
    assert trainer.global_step == 16


def test_fast_dev_run(kit):
    assert kit.train(partial(loader, kit), fast_dev_run=True).trainer.global_step == 1

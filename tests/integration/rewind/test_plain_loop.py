"""A loop written by hand, under `watch`: exact to the bit, with every kind of loader."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn
from torch.utils.data import DataLoader

from stabilizer.agent import Limits, watch
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.errors import ConfigurationError
from stabilizer.protocol.commands import (
    CheckpointNowParameters,
    PauseParameters,
    ReduceLrParameters,
    ResumeParameters,
    StopParameters,
)

STEPS = 24


class Average:
    """An average of the weights, as users keep one beside their model."""

    def __init__(self, model):
        self.weights = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, model):
        for mine, parameter in zip(self.weights, model.parameters(), strict=True):
            mine.lerp_(parameter, 0.1)

    def state_dict(self):
        return {"weights": self.weights}

    def load_state_dict(self, state):
        self.weights = [tensor.clone() for tensor in state["weights"]]


def build():
    seed_everything(11, verbose=False)
    model = nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    return SimpleNamespace(
        model=model, optimizer=optimizer, scheduler=scheduler, average=Average(model), history=[]
    )


def train_step(scene, batch, step):
    x, y, ids = batch
    loss = nn.functional.mse_loss(scene.model(x).squeeze(1), y)
    loss.backward()
    scene.optimizer.step()
    scene.scheduler.step()
    scene.optimizer.zero_grad()
    scene.average.update(scene.model)
    scene.history.append((step, tuple(ids.tolist()), loss.item()))
    return loss.detach()


def unwatched(loader):
    """The loop as its author wrote it first."""
    scene = build()
    step = 0
    while step < STEPS:
        for batch in loader:
            train_step(scene, batch, step)
            step += 1
            if step == STEPS:
                break
    return scene


@pytest.fixture
def watched(kit):
    """The same loop under `watch`; `plan` maps completed steps to makers of commands."""

    def run(loader, plan=None, **options):
        scene = build()
        plan = dict(plan or {})
        job = watch(
            scene.model,
            optimizers=scene.optimizer,
            loaders=loader,
            url="http://127.0.0.1:9",
            run="loop",
            schedulers=[scene.scheduler],
            stateful={"average": scene.average},
            snapshot_every=5,
            transport=kit.DeadTransport(),
            reporting=ReporterSettings(register_wait_seconds=0, spool_bytes=0),
            **options,
        )
        scene.job = job
        with job:
            for batch in job.batches(steps=STEPS):
                job.step(train_step(scene, batch, job.global_step))
                make = plan.pop(job.global_step, None)
                if make is not None:
                    made = make(job._job)
                    job._job.inbox.offer(made if isinstance(made, list) else [made])
        scene.results = list(job._job.inbox._settled.values())
        return scene

    return run


def loaders(kit):
    return {
        "plain": lambda: DataLoader(kit.Points(), batch_size=4),
        "shuffled": lambda: DataLoader(kit.Points(noise=True), batch_size=4, shuffle=True),
        "generator": lambda: DataLoader(
            kit.Points(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3)
        ),
        "workers": lambda: DataLoader(
            kit.Points(noise=True), batch_size=4, shuffle=True, num_workers=2
        ),
        "iterable": lambda: DataLoader(kit.NoisyStream(), batch_size=4),
        "stateful": kit.StatefulStream,
    }


KINDS = ["plain", "shuffled", "generator", "workers", "iterable", "stateful"]


@pytest.fixture
def make(kit):
    return loaders(kit)


def assert_same_end(reference, scene):
    for mine, theirs in zip(
        [*scene.model.state_dict().values(), *scene.average.weights],
        [*reference.model.state_dict().values(), *reference.average.weights],
        strict=True,
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_watching_changes_nothing(watched, make, kind):
    reference = unwatched(make[kind]())
    scene = watched(make[kind]())
    assert scene.history == reference.history
    assert_same_end(reference, scene)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollback_repeats_the_steps_to_the_bit(kit, watched, make, kind):
    reference = unwatched(make[kind]())
    # Back within the first pass of 15 batches, then over the end of a pass, then to the start.
    plan = {
        8: lambda job: kit.rollback(job, 5),
        18: lambda job: kit.rollback(job, 10),
        21: lambda job: kit.rollback(job, 15),
    }
    scene = watched(make[kind](), plan)
    assert [r.state for r in scene.results] == ["applied"] * 3
    expected = [
        *reference.history[:8], *reference.history[5:18], *reference.history[10:21],
        *reference.history[15:],
    ]  # fmt: skip
    assert scene.history == expected
    assert_same_end(reference, scene)
    assert scene.job.attempt == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollback_skips_the_data_it_is_told_to(kit, watched, make, kind):
    reference = unwatched(make[kind]())
    scene = watched(make[kind](), {8: lambda job: kit.rollback(job, 5, skip_steps=4)})
    (result,) = scene.results
    assert (result.state, result.read_back.skipped_samples) == ("applied", 16)
    ids = [ids for _, ids, _ in reference.history]
    assert [ids for _, ids, _ in scene.history[8:14]] == ids[9:15]


def test_a_rollback_to_the_very_start(kit, watched, make):
    reference = unwatched(make["shuffled"]())
    scene = watched(make["shuffled"](), {3: lambda job: kit.rollback(job, 0)})
    assert scene.history == [*reference.history[:3], *reference.history]
    assert_same_end(reference, scene)


def test_microbatches_count_as_one_step(kit, make):
    def run(plan):
        scene = build()
        plan = dict(plan)
        with watch(
            scene.model, optimizers=scene.optimizer, loaders=make["shuffled"](), url=None,
            run="micro", accumulate=2, snapshot_every=3,
        ) as job:  # fmt: skip
            for index, (x, y, _) in enumerate(job.batches(steps=9)):
                loss = nn.functional.mse_loss(scene.model(x).squeeze(1), y)
                (loss / 2).backward()
                if index % 2 == 0:
                    job.log_loss(loss)
                    continue
                job.after_backward()
                nn.utils.clip_grad_norm_(scene.model.parameters(), 0.1)
                scene.optimizer.step()
                scene.optimizer.zero_grad()
                scene.history.append((job.global_step, loss.item()))
                job.step(loss)
                if (maker := plan.pop(job.global_step, None)) is not None:
                    job._job.inbox.offer([maker(job._job)])
        return scene.history

    reference = run({})
    again = run({8: lambda job: kit.rollback(job, 6)})
    assert again == [*reference[:8], *reference[6:]]


def test_cut_pause_checkpoint_and_stop(kit, watched, make, tmp_path):
    saved = []

    def save(name):
        saved.append(name)
        return str(tmp_path / name)

    plan = {
        3: lambda job: kit.command(job, ReduceLrParameters(factor=0.5)),
        5: lambda job: [
            kit.command(job, PauseParameters()),
            kit.command(job, ResumeParameters()),
        ],
        7: lambda job: kit.command(job, CheckpointNowParameters()),
        9: lambda job: kit.command(job, StopParameters()),
    }
    scene = watched(make["plain"](), plan, save_checkpoint=save)
    assert {r.state for r in scene.results} == {"applied"}
    assert len(scene.results) == 5
    assert len(saved) == 1
    assert [step for step, _, _ in scene.history] == list(range(9))
    cut = next(r for r in scene.results if r.applied_step == 3)
    assert cut.read_back.lr_scale == 0.5


def test_a_checkpoint_without_a_function_fails_and_harms_nothing(kit, watched, make):
    scene = watched(make["plain"](), {7: lambda job: kit.command(job, CheckpointNowParameters())})
    assert [r.state for r in scene.results] == ["failed"]
    assert len(scene.history) == STEPS


def test_a_loop_that_reads_its_own_data_is_cut_but_not_rewound(kit, make, caplog):
    scene = build()
    caplog.set_level(logging.WARNING)
    with watch(scene.model, optimizers=[scene.optimizer], url=None, run="own") as job:
        for index, batch in enumerate(make["plain"]()):
            job.step(train_step(scene, batch, index))
            if index == 3:
                job._job.inbox.offer([kit.command(job._job, ReduceLrParameters(factor=0.5))])
            if index == 8:
                job._job.inbox.offer([kit.command(job._job, StopParameters())])
            if job.should_stop:
                break
        with pytest.raises(ConfigurationError, match="loaders"):
            next(job.batches())
    results = list(job._job.inbox._settled.values())
    assert [(r.state, r.applied_step) for r in results] == [("applied", 5), ("applied", 10)]
    assert "cannot be rewound" in caplog.text


def test_several_loaders_are_read_in_step(kit):
    def run(plan):
        model = nn.Linear(6, 1)
        torch.manual_seed(0)
        nn.init.normal_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        pair = [
            DataLoader(kit.Points(20), batch_size=4, shuffle=True),
            DataLoader(kit.Points(60), batch_size=4, shuffle=True),
        ]
        seen = []
        with watch(
            model, optimizers=optimizer, loaders=pair, url=None, run="two", snapshot_every=2
        ) as job:
            for (x, y, a), (other, _, b) in job.batches(epochs=3):
                loss = nn.functional.mse_loss(model(x + other).squeeze(1), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                seen.append((tuple(a.tolist()), tuple(b.tolist()), loss.item()))
                job.step(loss)
                if (maker := plan.pop(job.global_step, None)) is not None:
                    job._job.inbox.offer([maker(job._job)])
        return seen

    reference = run({})
    assert len(reference) == 15
    assert run({7: lambda job: kit.rollback(job, 4)}) == [*reference[:7], *reference[4:]]


def test_an_empty_loader_ends_the_loop(kit):
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizers=optimizer, loaders=[[]], url=None, run="none") as job:
        assert list(job.batches()) == []


def test_the_state_of_the_job_outlives_the_process(kit, make):
    def start(state, steps):
        scene = build()
        job = watch(
            scene.model, optimizers=scene.optimizer, loaders=make["stateful"](), url=None,
            run="again",
        )  # fmt: skip
        if state is not None:
            scene.model.load_state_dict(state["model"])
            job.load_state_dict(state["job"])
        with job:
            for batch in job.batches(steps=steps):
                job.step(train_step(scene, batch, job.global_step))
                if job.global_step == 2:
                    cut = ReduceLrParameters(factor=0.5)
                    job._job.inbox.offer([kit.command(job._job, cut)])
            state = {"model": scene.model.state_dict(), "job": job.state_dict()}
        return copy.deepcopy(state), scene.history, job

    state, history, _ = start(None, 6)
    _, more, job = start(state, 9)
    assert [step for step, _, _ in more] == [6, 7, 8]
    assert more[0][1][0] == history[-1][1][-1] + 1  # the data continues
    assert job._job.override.scale == 0.5


@pytest.mark.parametrize(
    ("options", "field"),
    [({"accumulate": 0}, "accumulate"), ({"optimizers": []}, "optimizers"), ({"run": ""}, "run")],
)
def test_what_cannot_be_watched_is_refused(options, field):
    model = nn.Linear(2, 1)
    given = {"optimizers": torch.optim.SGD(model.parameters(), lr=0.1), "run": "r"} | options
    with pytest.raises(ConfigurationError, match=field):
        watch(model, url=None, limits=Limits(), **given)

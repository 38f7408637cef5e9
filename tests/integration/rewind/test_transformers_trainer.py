"""transformers' Trainer under `watch_trainer`: exact to the bit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.utils.data import Dataset, IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from stabilizer.agent.integrations.transformers import watch_trainer
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.protocol.commands import (
    CheckpointNowParameters,
    PauseParameters,
    ReduceLrParameters,
    ResumeParameters,
    StopParameters,
)

LENGTH = 12


def _tokens(index):
    generator = torch.Generator().manual_seed(index)
    return torch.randint(0, 50, (LENGTH,), generator=generator)


class Texts(Dataset):
    """Forty texts; with noise they draw from the global random state wherever they are made."""

    def __init__(self, size=40, noise=False):
        self.size, self.noise = size, noise

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        tokens = _tokens(index)
        if self.noise:
            tokens[-1] = torch.randint(0, 50, ())
        return {"input_ids": tokens, "labels": tokens}


class Stream(IterableDataset):
    def __iter__(self):
        for index in range(1000):
            tokens = _tokens(index)
            yield {"input_ids": tokens, "labels": tokens}


class Recording(Trainer):
    """Keeps what each microbatch was and what it cost."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        batch = tuple(inputs["input_ids"].flatten().tolist())
        self.history.append((self.state.global_step, batch, loss.item()))
        return loss


class Conductor(TrainerCallback):
    """Feeds commands to the inbox when a step is complete, each once."""

    def __init__(self, plan):
        self.plan, self.watched, self.job = dict(plan), None, None

    def on_step_end(self, args, state, control, **kwargs):
        self.job = self.watched.job
        make = self.plan.pop(state.global_step, None)
        if make is not None:
            made = make(self.job)
            self.job.inbox.offer(made if isinstance(made, list) else [made])


@pytest.fixture
def run(kit, tmp_path):
    """Train; `plan` maps completed steps to makers of commands."""
    transformers.logging.set_verbosity_error()

    def run(dataset=None, plan=None, *, watched=True, **options):
        arguments = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "num_train_epochs": 3,
            "learning_rate": 1e-3,
            "logging_steps": 3,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 5,
            "dataloader_pin_memory": False,
        } | options
        transformers.set_seed(5)
        config = GPT2Config(vocab_size=50, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2)
        trainer = Recording(
            model=GPT2LMHeadModel(config),  # with dropout
            args=TrainingArguments(**arguments),
            train_dataset=Texts() if dataset is None else dataset,
        )
        trainer.history = []
        conductor = Conductor(plan or {})
        if watched:
            conductor.watched = watch_trainer(
                trainer, url="http://127.0.0.1:9", run="hf", snapshot_every=4,
                transport=kit.DeadTransport(),
                reporting=ReporterSettings(register_wait_seconds=0, spool_bytes=0),
            )  # fmt: skip
            trainer.add_callback(conductor)
        trainer.train()
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        results = list(conductor.job.inbox._settled.values()) if conductor.job else []
        return SimpleNamespace(
            trainer=trainer, history=trainer.history, weights=weights, results=results,
            logged=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        )  # fmt: skip

    return run


DATASETS = {
    "plain": (Texts, {}),
    "noise": (lambda: Texts(noise=True), {}),
    "workers": (lambda: Texts(noise=True), {"dataloader_num_workers": 1}),
    "accumulated": (Texts, {"gradient_accumulation_steps": 2, "num_train_epochs": 6}),
    "uneven": (lambda: Texts(38), {"gradient_accumulation_steps": 3, "num_train_epochs": 8}),
    "stream": (Stream, {"max_steps": 30, "accelerator_config": {"dispatch_batches": False}}),
}


def steps_of(ran):
    return [step for step, _, _ in ran.history]


def assert_same_end(reference, ran):
    for name, value in reference.weights.items():
        assert torch.equal(value, ran.weights[name]), name
    assert ran.logged == reference.logged


def repeated(reference, ran, jumps):
    """The history that an exact rollback gives, from that of the undisturbed run."""
    expected, begin = [], 0
    for at, to in [*jumps, (10**9, None)]:
        part = [item for item in reference.history if begin <= item[0] < at]
        expected += part
        begin = to
    return expected


@pytest.mark.parametrize("name", DATASETS)
def test_watching_changes_nothing(run, name):
    make, options = DATASETS[name]
    reference = run(make(), watched=False, **options)
    watched = run(make(), **options)
    assert watched.history == reference.history
    assert_same_end(reference, watched)


@pytest.mark.parametrize("name", DATASETS)
def test_a_rollback_repeats_the_steps_to_the_bit(kit, run, name):
    make, options = DATASETS[name]
    reference = run(make(), watched=False, **options)
    plan = {
        7: lambda job: kit.rollback(job, 4),
        18: lambda job: kit.rollback(job, 8),  # into the epoch before
        22: lambda job: kit.rollback(job, 20),  # the start of an epoch of ten batches
    }
    ran = run(make(), plan, **options)
    assert [r.state for r in ran.results] == ["applied"] * 3
    assert ran.history == repeated(reference, ran, [(7, 4), (18, 8), (22, 20)])
    assert_same_end(reference, ran)
    assert ran.trainer.state.global_step == reference.trainer.state.global_step


def test_a_rollback_to_the_very_start(kit, run):
    reference = run(watched=False)
    ran = run(plan={3: lambda job: kit.rollback(job, 0)})
    assert ran.history == repeated(reference, ran, [(3, 0)])
    assert_same_end(reference, ran)


def test_a_rollback_skips_data_of_the_epoch(kit, run):
    reference = run(watched=False)
    ran = run(plan={7: lambda job: kit.rollback(job, 4, skip_steps=2)})
    (result,) = ran.results
    assert (result.state, result.read_back.skipped_samples) == ("applied", 8)
    batches = [batch for _, batch, _ in reference.history]
    assert [batch for _, batch, _ in ran.history[7:11]] == batches[6:10]
    assert steps_of(ran)[7:9] == [4, 5]


def test_cut_pause_checkpoint_and_stop(kit, run, tmp_path):
    plan = {
        3: lambda job: kit.command(job, ReduceLrParameters(factor=0.5)),
        5: lambda job: [
            kit.command(job, PauseParameters()),
            kit.command(job, ResumeParameters()),
        ],
        7: lambda job: kit.command(job, CheckpointNowParameters()),
        9: lambda job: kit.command(job, StopParameters()),
    }
    ran = run(plan=plan)
    assert {r.state for r in ran.results} == {"applied"}
    assert max(steps_of(ran)) == 8
    saved = next(r.read_back.checkpoint_path for r in ran.results if r.read_back.checkpoint_path)
    assert (tmp_path / "out" / "checkpoint-7").samefile(saved)
    cut = next(r for r in ran.results if r.applied_step == 3)
    assert cut.read_back.lr_scale == 0.5


def test_a_failure_is_reported_and_raised(kit, run, monkeypatch):
    failures = []
    monkeypatch.setattr(
        "stabilizer.agent.integrations.job.Job.fail",
        lambda job, step, message: failures.append((step, message)),
    )

    def explode(job):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        run(plan={6: explode})
    assert failures == [(6, "RuntimeError: no")]


def test_data_that_accelerate_dispatches_is_watched_and_not_rewound(kit, run, caplog):
    caplog.set_level("WARNING")
    rollback = {6: lambda job: kit.rollback(job, 4, snapshot_id="step4-1")}
    ran = run(Stream(), rollback, max_steps=9)
    assert [(r.state, r.reason) for r in ran.results] == [("rejected", "unsupported")]
    assert "dispatch_batches" in caplog.text
    assert len(ran.history) == 9

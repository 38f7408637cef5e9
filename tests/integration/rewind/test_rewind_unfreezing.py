"""A rewind across the step at which frozen parts of IDEFICS begin to learn."""

from __future__ import annotations

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch

from stabilizer.agent import StabilizerCallback
from stabilizer.agent.integrations.job import NullTelemetry
from stabilizer.agent.telemetry.settings import ReporterSettings
from trainer.config import load_config
from trainer.module import IdeficsModule, build_model
from trainer.module.parts import part_of

STEPS = 12
UNFREEZE = 6
FIELDS = {
    "model.hidden_size": 32,
    "model.intermediate_size": 48,
    "model.layers": 2,
    "model.heads": 2,
    "model.dropout": 0.1,
    "model.vision.layers": 1,
    "model.resampler.layers": 1,
    "model.gate_initializer": "ones",
    "model.freeze": ["language_layers", "language_norms", "vision"],
    "model.unfreeze": [{"step": UNFREEZE, "parts": ["language_norms", "vision"]}],
    "optimizer.warmup_steps": 2,
    "training.steps": STEPS,
}


class Stream:
    """Batches that are a function of their position."""

    batch_size = 2

    def __init__(self):
        self.samples = 0

    def __len__(self):
        return 1000

    def state_dict(self):
        return {"samples": self.samples}

    def load_state_dict(self, state):
        self.samples = state["samples"]

    def skip_samples(self, n):
        self.samples += n

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(self.samples)
            self.samples += self.batch_size
            ids = torch.randint(5, 600, (2, 10), generator=generator)
            yield {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "labels": ids,
                "pixel_values": torch.randn(2, 1, 3, 16, 16, generator=generator),
                "image_attention_mask": torch.ones(2, 10, 1, dtype=torch.int64),
            }


class History(pl.Callback):
    """Loss, what learns, and the weights after every step."""

    def __init__(self):
        self.losses, self.learns, self.weights = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        named = list(module.model.named_parameters())
        self.losses.append((trainer.global_step, outputs["loss"].item()))
        self.learns.append({part_of(name) for name, p in named if p.requires_grad})
        self.weights.append({name: p.detach().clone() for name, p in named})


class Ear(NullTelemetry):
    """Records the markers of the job."""

    def __init__(self):
        self.attempt = 1
        self.markers = []

    def begin_attempt(self, attempt_id, start):
        self.attempt += 1

    def marker(self, marker):
        self.markers.append((self.attempt, marker.kind.value, marker.step, marker.text))


RUNS = {}
"""Finished runs, by step of the command and of the snapshot; (None, None) is undisturbed."""


@pytest.fixture
def run(kit, monkeypatch):
    """Return a function that trains, with one rollback from a step to another; each once."""

    def start(at=None, to=None):
        if (at, to) not in RUNS:
            RUNS[at, to] = train({} if at is None else {at: lambda job: kit.rollback(job, to)})
        return RUNS[at, to]

    def train(plan):
        pl.seed_everything(3, verbose=False)
        config = load_config("idefics-tiny", fields=FIELDS)
        module = IdeficsModule(
            build_model(config.model),
            config.optimizer,
            steps=STEPS,
            unfreeze=config.model.unfreeze,
        )
        ear, history, conductor = Ear(), History(), None
        callbacks = [history]
        if plan:
            watcher = StabilizerCallback(
                "http://127.0.0.1:9", run="unfreezing", snapshot_every=2, keep_snapshots=20,
                transport=kit.DeadTransport(),
                reporting=ReporterSettings(register_wait_seconds=0, spool_bytes=0),
            )  # fmt: skip
            monkeypatch.setattr(
                "stabilizer.agent.integrations.job.Job._make_telemetry", lambda job, register: ear
            )
            conductor = kit.Conductor(watcher, plan)
            callbacks = [conductor, watcher, history]
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, deterministic=True,
            enable_progress_bar=False, enable_model_summary=False, max_steps=STEPS, max_epochs=-1,
            callbacks=callbacks,
        )  # fmt: skip
        trainer.fit(module, Stream())
        return SimpleNamespace(
            module=module, trainer=trainer, ear=ear, conductor=conductor, **vars(history)
        )

    return start


@pytest.mark.parametrize(("at", "to"), [(9, 4), (9, 6), (7, 6), (6, 4), (10, 8)])
def test_a_rewind_across_the_change_repeats_the_run_bit_for_bit(run, at, to):
    calm = run()
    rewound = run(at, to)
    assert [result.state for result in rewound.conductor.results] == ["applied"]
    assert rewound.losses[:at] == calm.losses[:at]
    assert rewound.losses[at:] == calm.losses[to:]
    assert rewound.learns[at:] == calm.learns[to:]
    last = rewound.weights[-1]
    assert all(torch.equal(last[name], value) for name, value in calm.weights[-1].items())


def test_before_the_change_the_parts_are_frozen_again_and_without_moments(run):
    rewound = run(9, 4)
    late = {"language_norms", "vision"}
    assert [bool(learns & late) for learns in rewound.learns] == (
        [False] * 6 + [True] * 3 + [False] * 2 + [True] * 6
    )
    optimizer = rewound.trainer.optimizers[0]
    names = {p: name for name, p in rewound.module.model.named_parameters()}
    steps = {float(s["step"]) for p, s in optimizer.state.items() if part_of(names[p]) in late}
    assert steps == {STEPS - UNFREEZE}


@pytest.mark.parametrize(("at", "to", "attempts"), [(9, 4, [1, 2]), (9, 6, [1, 2]), (10, 8, [1])])
def test_the_phase_is_reported_in_every_attempt_that_reaches_it(run, at, to, attempts):
    rewound = run(at, to)
    phases = [marker for marker in rewound.ear.markers if marker[1] == "phase_change"]
    text = "unfrozen: language_norms, vision"
    assert phases == [(attempt, "phase_change", UNFREEZE, text) for attempt in attempts]

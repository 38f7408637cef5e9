"""The real job: IDEFICS with dropout on its stream of documents, two workers, accumulation."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch

from stabilizer.agent import StabilizerCallback
from stabilizer.agent.telemetry.settings import ReporterSettings
from trainer.config import load_config
from trainer.data.making import make_corpus
from trainer.run import build_job


class Recorder(pl.Callback):
    """Losses and positions of every batch, and the weights when a step is first completed."""

    def __init__(self, weights_at):
        self.history = []
        self.weights_at = weights_at
        self.weights = None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        item = (trainer.global_step, tuple(batch["positions"]), outputs["loss"].item())
        self.history.append(item)
        if trainer.global_step == self.weights_at and self.weights is None:
            self.weights = {name: v.clone() for name, v in module.state_dict().items()}


@pytest.fixture
def run(kit, tmp_path):
    make_corpus(tmp_path / "corpus", documents=120, seed=0)
    fields = {
        "data.folder": str(tmp_path / "corpus"),
        "data.workers": 2,
        "data.batch_size": 4,
        "data.epoch_samples": 56,
        "training.out": str(tmp_path / "out"),
        "training.steps": 16,
        "model.layers": 2,
        "model.dropout": 0.1,
        "optimizer.warmup_steps": 4,
    }
    config = load_config("idefics-tiny", fields=fields)

    def start(plan=None):
        torch.set_num_threads(1)
        job = build_job(config)
        recorder, callbacks, conductor = Recorder(weights_at=14), [], None
        if plan is not None:
            watcher = StabilizerCallback(
                "http://127.0.0.1:9",
                run="idefics",
                snapshot_every=4,
                transport=kit.DeadTransport(),
                reporting=ReporterSettings(register_wait_seconds=0, spool_bytes=0),
            )
            conductor = kit.Conductor(watcher, plan)
            callbacks = [conductor, watcher]
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, max_steps=16, max_epochs=-1,
            accumulate_grad_batches=2, gradient_clip_val=1.0, deterministic=True,
            callbacks=[*callbacks, recorder],
        )  # fmt: skip
        trainer.fit(job.module, job.loader)
        return recorder, conductor, trainer

    return start


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # of libraries, about how this small job is set up
def test_idefics_repeats_its_steps_and_skips_documents(run, kit):
    # Epochs have 7 steps: the first rollback goes from the second epoch back into the first.
    reference, _, _ = run()
    plan = {
        10: lambda job: kit.rollback(job, 4),
        14: lambda job: kit.rollback(job, 8, skip_steps=3),
    }
    rewound, conductor, trainer = run(plan)
    assert [r.state for r in conductor.results] == ["applied"] * 2
    first, second = (r.read_back for r in conductor.results)

    assert first.samples == 4 * 8
    back, skipped = 2 * 10, 2 * 10 + 2 * 10  # after steps 1 to 10, and after steps 5 to 14
    assert rewound.history[:back] == reference.history[:back]
    assert rewound.history[back:skipped] == reference.history[8:28]
    for name, value in reference.weights.items():
        assert torch.equal(value, rewound.weights[name]), name

    assert second.skipped_samples == 24
    positions = [position for _, batch, _ in rewound.history[skipped:] for position in batch]
    assert positions == list(range(8 * 8 + 3 * 8, 8 * 8 + 3 * 8 + 8 * 8))
    assert trainer.global_step == 16

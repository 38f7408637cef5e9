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


class Losses(pl.Callback):
    def __init__(self):
        self.history = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        item = (trainer.global_step, tuple(batch["positions"]), outputs["loss"].item())
        self.history.append(item)


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
        losses, callbacks, conductor = Losses(), [], None
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
            callbacks=[*callbacks, losses],
        )  # fmt: skip
        trainer.fit(job.module, job.loader)
        return losses.history, job.module.state_dict(), conductor, trainer

    return start


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # of libraries, about how this small job is set up
def test_idefics_repeats_its_steps_and_skips_documents(run, kit):
    history, weights, _, _ = run()
    # Epochs of 7 steps: from the second epoch back into the first, then on behind both.
    again, weights_again, conductor, _ = run({10: lambda job: kit.rollback(job, 4)})
    assert [r.state for r in conductor.results] == ["applied"]
    assert conductor.results[0].read_back.samples == 4 * 8
    back = 20
    assert again[:back] == history[:back]
    assert again[back:] == history[8:]
    for name, value in weights.items():
        assert torch.equal(value, weights_again[name]), name

    skipped, _, conductor, trainer = run({10: lambda job: kit.rollback(job, 8, skip_steps=3)})
    positions = [position for _, batch, _ in skipped[back:] for position in batch]
    assert positions == list(range(8 * 8 + 3 * 8, 8 * 8 + 3 * 8 + 8 * 8))
    assert conductor.results[0].read_back.skipped_samples == 24
    assert trainer.global_step == 16

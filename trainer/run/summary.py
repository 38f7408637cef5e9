"""What came out of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from trainer.config import RunConfig
from trainer.data import StreamLoader, open_heldout_stream
from trainer.module import as_json
from trainer.run.job import Job


@dataclass(frozen=True, slots=True)
class Summary:
    """What came out of a run; `summary.json` holds the same."""

    final_loss: float
    """Mean training loss of the last 25 steps; NaN without a step."""
    heldout_loss: float | None
    """Loss per token on the held-out documents at the end; None where the corpus has none."""
    steps: int
    """Completed optimizer steps."""
    attempts: int
    """Stretches between two starts or rewinds."""
    samples: int
    """Position in the stream at the end."""
    passed_over: int
    """Unusable documents that were met and replaced."""
    parameters: int
    """Weights of the model."""
    seconds: float
    """Time in training, without imports and building."""
    tokens_per_second: float | None = None
    """Over the last 50 steps, without padding, over all processes; None without a step."""
    mfu: float | None = None
    """Part of training.peak_flops that the model's own operations used; None if that is not set."""
    rank: int = 0
    """Process that says so; others than 0 know neither losses nor attempts."""

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        content = {name: as_json(value) for name, value in asdict(self).items() if name != "rank"}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def heldout_loss(config: RunConfig, job: Job) -> float | None:
    """Return the loss per token over one pass of the held-out documents, dropout off.

    Every source's documents count as often as its weight in the mixture says. With a sharded model
    all ranks must ask together; each reads all documents.
    """
    stream = open_heldout_stream(
        config.data, job.tokenizer, image_size=config.model.vision.image_size
    )
    if stream is None:
        return None
    loader = StreamLoader(stream, batch_size=config.data.batch_size)
    job.module.eval()
    total, count = 0.0, 0
    for batch in loader:
        losses = job.module.losses(job.module.transfer_batch_to_device(batch, job.module.device, 0))
        total += float(losses.cross_entropy.sum())
        count += int(losses.counted.sum())
    job.module.train()
    return total / max(count, 1)

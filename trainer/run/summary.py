"""Results of a run: summary, held-out loss, and export of the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from stabilizer.errors import StabilizerError
from trainer.checkpoints import FACTS_KEY, CheckpointError, CheckpointStore, SafeCheckpointIO
from trainer.config import ModelConfig, PretrainedConfig, RunConfig
from trainer.config.loading import parse_config
from trainer.data import StreamLoader, TrainingBatch
from trainer.module import as_json, build_model
from trainer.run.job import TrainingJob
from trainer.run.resuming import CHECKPOINTS_FOLDER, CONFIG_FACT

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Summary:
    """Results of a run, as in `summary.json`."""

    final_loss: float
    """Mean training loss of the last 25 steps; NaN without a step."""
    heldout_loss: float | None
    """Loss per token on the held-out documents at the end; None where there are none, or they
    could not be read."""
    steps: int
    """Completed optimizer steps."""
    attempts: int
    """Stretches between two starts or rewinds."""
    samples: int
    """Position in the stream at the end."""
    passed_over: int
    """Number of unusable documents that were replaced."""
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
def heldout_loss(
    config: RunConfig, job: TrainingJob, agree: Callable[[bool], bool]
) -> float | None:
    """Return the loss per token over one pass of the held-out documents, dropout off.

    Sources count by their weight in the mixture. All ranks must call this together; each reads all
    documents.

    Args:
        config: Of the run.
        job: With the trained model.
        agree: Returns whether something is true on all ranks.

    Returns:
        The loss; None if there are no such documents, or if they can no longer be read, which is
        logged: a finished run must not lose its summary.
    """
    if job.heldout is None:
        return None
    loader = StreamLoader(job.heldout, batch_size=config.data.batch_size)
    job.module.eval()
    total, count = 0.0, 0
    try:
        for batch in _batches(loader, agree):
            moved = job.module.transfer_batch_to_device(batch, job.module.device, 0)
            losses = job.module.losses(moved)
            total += float(losses.cross_entropy.sum())
            count += int(losses.counted.sum())
    except (StabilizerError, OSError) as error:
        _log.warning("no held-out loss, since its documents cannot be read: %s", error)
        return None
    finally:
        job.module.train()
    return total / max(count, 1)


def _batches(loader: StreamLoader, agree: Callable[[bool], bool]) -> Iterator[TrainingBatch]:
    """Read batches; all ranks fail if one does, since a sharded model computes on all of them.

    Raises:
        StabilizerError: Documents cannot be read, here or on another rank.
        OSError: The same.
    """
    batches = iter(loader)
    while True:
        batch: TrainingBatch | None = None
        error: Exception | None = None
        try:
            batch = next(batches, None)
        except (StabilizerError, OSError) as failure:
            error = failure
        is_read = agree(error is None)
        if error is not None:
            raise error
        if not is_read:
            raise StabilizerError("another rank has failed; see its log")
        if batch is None:
            return
        yield batch


_PREFIX: Final = "model."
"""Of the names of weights in the Lightning module."""


def export_model(source: Path, out: Path) -> Path:
    """Write weights (safetensors) and configuration of the model of a checkpoint.

    Args:
        source: A checkpoint's folder, or that of a run, whose newest checkpoint is taken.
        out: Folder to write; `model.pretrained.whole` takes it.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: There is no checkpoint of this trainer.
        OSError: It cannot be written.
    """
    newest = CheckpointStore(source / CHECKPOINTS_FOLDER).latest()
    folder = source if newest is None else newest.path
    state = SafeCheckpointIO().load_checkpoint(folder)
    model = build_model(_model_config(state, folder))
    model.load_state_dict(
        {
            name.removeprefix(_PREFIX): value
            for name, value in state["state_dict"].items()
            if name.startswith(_PREFIX)
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    return folder


def _model_config(state: dict[str, Any], folder: Path) -> ModelConfig:
    saved = state.get(FACTS_KEY, {}).get(CONFIG_FACT)
    if not isinstance(saved, str):
        raise CheckpointError(f"{folder} was not written by `python -m trainer fit`")
    model = parse_config(json.loads(saved)).model
    return replace(model, pretrained=PretrainedConfig())

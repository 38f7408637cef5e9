"""How likely documents are to a model of a checkpoint."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stabilizer.errors import ConfigurationError
from trainer.checkpoints import CheckpointError, SafeCheckpointIO
from trainer.config import PretrainedConfig, RunConfig
from trainer.data import PAD, CorpusTokenizer, Document, collate
from trainer.data.sequences.encoding import SequenceEncoder
from trainer.data.stream import Read
from trainer.module import IdeficsModule, at_equal_size, build_model


class LossModel:
    """A model with the weights of a checkpoint, dropout off."""

    def __init__(self, config: RunConfig, tokenizer: CorpusTokenizer, checkpoint: Path) -> None:
        """Build the model of a run and load its weights.

        Args:
            config: Of the run.
            tokenizer: Of the run.
            checkpoint: Folder that the trainer wrote, or a Lightning file (read without pickles).

        Raises:
            ConfigurationError: It is none, or of another model.
        """
        weights = _weights(checkpoint)
        # The pretrained weights that the run began with are in the checkpoint.
        model = replace(at_equal_size(config.model), pretrained=PretrainedConfig())
        self._module = IdeficsModule(
            build_model(model, pad_token_id=tokenizer.special(PAD)),
            config.optimizer,
            steps=config.training.steps,
        )
        try:
            self._module.load_state_dict(weights)
        except RuntimeError as error:
            raise ConfigurationError(
                f"--checkpoint: {checkpoint} is of another model than the configuration: {error}"
            ) from error
        self._module.eval()
        data = config.data
        self._encoder = SequenceEncoder(
            tokenizer,
            sequence_length=data.sequence_length,
            max_images=data.max_images,
            image_size=config.model.vision.image_size,
            sees_all_images=data.images_seen == "all",
        )

    @torch.no_grad()
    def of(self, document: Document) -> float:
        """Return the mean loss of a document, alone in a sequence and cut to its length.

        Raises:
            BadDocumentError: It cannot be laid out.
        """
        batch: Any = collate([Read(self._encoder.encode(document, 0))])
        losses = self._module.losses(batch)
        return float(losses.mean(losses.cross_entropy))


def _weights(checkpoint: Path) -> dict[str, Any]:
    if not checkpoint.exists():
        raise ConfigurationError(
            f"--checkpoint: {checkpoint} does not exist; allowed: a checkpoint's folder, or a "
            "Lightning file"
        )
    try:
        if checkpoint.is_dir():
            state: Any = SafeCheckpointIO().load_checkpoint(checkpoint)
        else:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights: dict[str, Any] = state["state_dict"]
    except (CheckpointError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigurationError(f"--checkpoint: {checkpoint} cannot be read: {error}") from error
    except (KeyError, TypeError) as error:
        raise ConfigurationError(
            f"--checkpoint: {checkpoint} cannot be used; allowed: one that holds a state_dict"
        ) from error
    return weights

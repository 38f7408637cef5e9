"""The model of a checkpoint as a folder of transformers, to start another run from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from trainer.checkpoints import FACTS_KEY, CheckpointError, CheckpointStore, SafeCheckpointIO
from trainer.config import ModelConfig, PretrainedConfig
from trainer.config.loading import parse_config
from trainer.module import build_model
from trainer.run.fitting import silence_libraries
from trainer.run.resuming import CHECKPOINTS_FOLDER, CONFIG_FACT

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
    silence_libraries()
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

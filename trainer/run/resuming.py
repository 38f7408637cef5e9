"""Resume a run from a checkpoint, at the rates that are configured now."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from stabilizer.errors import ConfigurationError
from trainer.checkpoints import (
    FACTS_KEY,
    CheckpointError,
    CheckpointStore,
    find_checkpoint,
    read_state,
)
from trainer.checkpoints.folders import read_manifest
from trainer.config import RunConfig
from trainer.module import follow_configuration

CHECKPOINTS_FOLDER: Final = "checkpoints"
CONFIG_FACT: Final = "config"
_MAY_DIFFER: Final = (
    "dropout",
    "attention",
    "activation_checkpointing",
    "pretrained",
    "freeze",
    "unfreeze",
)

_REPORTED: Final = (
    "data.",
    "optimizer.",
    "model.",
    "training.steps",
    "training.seed",
    "training.accumulate",
    "training.precision",
)
"""What changes the numbers of a run, or the schedule of its rates."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resume:
    """A checkpoint to resume from."""

    path: Path
    """Its folder."""
    step: int
    """Completed optimizer steps in it."""


def store_of(config: RunConfig) -> CheckpointStore:
    """Return where the run keeps its checkpoints."""
    folder = Path(config.training.out) / CHECKPOINTS_FOLDER
    return CheckpointStore(folder, keep=config.training.keep_checkpoints)


def facts_of(config: RunConfig) -> dict[str, Any]:
    """Return what a checkpoint holds about the run, for `choose_resume`."""
    return {CONFIG_FACT: _to_json(config)}


def choose_resume(config: RunConfig, wanted: str | None) -> Resume | None:
    """Find the checkpoint to resume from, and compare its run with this one.

    Args:
        config: Of the resumed run.
        wanted: As in `--resume`; None: start from scratch.

    Returns:
        The checkpoint; None to start from scratch.

    Raises:
        ConfigurationError: There is none, it is of another model or strategy, or the folder holds
            checkpoints and nothing says to resume from them.
    """
    store = store_of(config)
    if wanted is None:
        _refuse_to_mix(config, store)
        return None
    try:
        path = find_checkpoint(store, wanted)
        if path is None:
            return None
        manifest, state = read_manifest(path), read_state(path)
    except CheckpointError as error:
        raise ConfigurationError(str(error)) from error
    is_sharded = config.training.strategy == "fsdp2"
    if bool(manifest.get("sharded")) != is_sharded:
        raise ConfigurationError(
            f"training.strategy: {config.training.strategy!r} cannot be used; allowed: "
            f"{'auto or ddp' if is_sharded else 'fsdp2'}, which wrote {path}"
        )
    _compare(state.get(FACTS_KEY, {}).get(CONFIG_FACT), config, path)
    return Resume(path, int(state["global_step"]))


def _refuse_to_mix(config: RunConfig, store: CheckpointStore) -> None:
    newest = next(reversed(store.usable()), None)
    if config.training.checkpoint_every and newest is not None:
        raise ConfigurationError(
            f"training.out: {config.training.out!r} cannot be used; allowed: another folder, or "
            f"--resume latest, since checkpoints up to step {newest.step} of a run are there"
        )


def _to_json(config: RunConfig) -> str:
    return json.dumps(asdict(config))


def _compare(saved: object, config: RunConfig, path: Path) -> None:
    """Refuse another model; log what else differs."""
    if not isinstance(saved, str):
        return  # of a job that kept no configuration
    differences = dict(_differences(json.loads(saved), json.loads(_to_json(config))))
    other_model = {
        name: values
        for name, values in differences.items()
        if name.startswith("model.") and name.split(".")[1] not in _MAY_DIFFER
    }
    if other_model:
        lines = [
            f"{name}: {new!r} cannot be used; allowed: {old!r}, as in {path}"
            for name, (old, new) in other_model.items()
        ]
        raise ConfigurationError("\n".join(lines))
    reported = [name for name in differences if name.startswith(_REPORTED)]
    if reported:
        _log.warning(
            "resumed with another %s: the run is not identical to the bit",
            ", ".join(reported),
        )


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{above}{name}.")
        elif before != after:
            yield f"{above}{name}", (before, after)


_UNKNOWN: Final = object()


class ConfiguredRates(Callback):
    """Applies another learning rate, decay, schedule or number of steps on a resume.

    Optimizer and schedule restore their values from a checkpoint, which replace those of the
    configuration. Values that are unchanged in the configuration stay as restored, including a cut
    by the agent and the rate of a fault. Put it before the callback of the agent.
    """

    def __init__(self, config: RunConfig) -> None:
        """Apply changes relative to this configuration."""
        self._config = config
        self._saved: object = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Drop the state of an earlier fit."""
        self._saved = None

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the configuration of the job that wrote the checkpoint."""
        self._saved = checkpoint.get(FACTS_KEY, {}).get(CONFIG_FACT)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply the changes, once everything is loaded."""
        if not isinstance(self._saved, str):
            return  # a new run, or the checkpoint of a job that kept no configuration
        saved = json.loads(self._saved)
        before = {**saved["optimizer"], "steps": saved["training"]["steps"]}
        optimizer_config = self._config.optimizer
        now = json.loads(json.dumps(asdict(optimizer_config)))
        now["steps"] = self._config.training.steps
        changed = {name for name, value in now.items() if before.get(name, _UNKNOWN) != value}
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, LambdaLR):
                follow_configuration(
                    config.scheduler.optimizer,
                    config.scheduler,
                    optimizer_config,
                    changed=changed,
                    peak_before=before["learning_rate"],
                )

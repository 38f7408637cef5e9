"""A resumed run trains with the rates that are configured now, not with those of its checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Final

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from trainer.checkpoints import FACTS_KEY
from trainer.config import RunConfig
from trainer.module import follow_configuration
from trainer.run.resuming import CONFIG_FACT

_UNKNOWN: Final = object()


class ConfiguredRates(Callback):
    """Applies another learning rate, decay, schedule or number of steps on a resume.

    Optimizer and schedule restore their own values from a checkpoint, over those of the
    configuration. What has not changed in the configuration stays as it was restored: so do a cut
    by the agent and the rate of a fault. Put it in front of what watches.
    """

    def __init__(self, config: RunConfig) -> None:
        """Compare checkpoints with a configuration."""
        self._config = config
        self._saved: object = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what an earlier fit has left."""
        self._saved = None

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the configuration of the job that wrote the checkpoint."""
        self._saved = checkpoint.get(FACTS_KEY, {}).get(CONFIG_FACT)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply what has changed; everything is loaded by now."""
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

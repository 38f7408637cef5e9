"""One line that a person at a terminal can follow; nothing where there is none."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typing_extensions import override

from trainer.module.idefics_module import IdeficsModule


class ProgressLine(Callback):
    """Shows completed steps, loss and the time that is left."""

    def __init__(self, console: Console | None = None) -> None:
        """Show on a console; on standard output by default."""
        console = console or Console()
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("train", loss="-")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to show."""
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._progress.update(self._task, total=total, completed=trainer.global_step)
        self._progress.start()

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show the step; it goes back when the job is rewound."""
        loss = "-"
        if isinstance(pl_module, IdeficsModule) and not self._progress.disable:
            loss = f"{float(pl_module.last_losses['loss']):.3f}"
        self._progress.update(self._task, completed=trainer.global_step, loss=loss)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the line."""
        self._progress.stop()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back before the error is told."""
        self._progress.stop()

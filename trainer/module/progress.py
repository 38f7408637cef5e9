"""One line that a person at a terminal can follow; a line now and then where there is none."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typing_extensions import override

from stabilizer.clock import Clock, SystemClock
from trainer.module.idefics_module import IdeficsModule


class ProgressLine(Callback):
    """Shows completed steps, loss and the time that is left.

    In a log, where nothing can be redrawn, a line is written every `log_seconds`; a job that is
    shorter writes none.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        clock: Clock | None = None,
        log_seconds: float = 60.0,
    ) -> None:
        """Show on a console; on standard output by default.

        Args:
            console: Where to.
            clock: Says when a line is due.
            log_seconds: Between two lines of a log.
        """
        self._console = console or Console()
        self._clock = clock or SystemClock()
        self._log_seconds = log_seconds
        self._told_at = 0.0
        self._told_step = 0
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("train", loss="-")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to show."""
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._progress.update(self._task, total=total, completed=trainer.global_step)
        self._progress.start()
        self._told_at, self._told_step = self._clock.monotonic(), trainer.global_step

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
        now = self._clock.monotonic()
        is_due = self._progress.disable and now - self._told_at >= self._log_seconds
        if self._progress.disable and not is_due:
            return
        loss = "-"
        if isinstance(pl_module, IdeficsModule):
            loss = f"{float(pl_module.last_losses['loss']):.3f}"
        self._progress.update(self._task, completed=trainer.global_step, loss=loss)
        if is_due:
            self._tell(trainer, loss, now)

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

    def _tell(self, trainer: Trainer, loss: str, now: float) -> None:
        step = trainer.global_step
        pace = (step - self._told_step) / (now - self._told_at)
        about = f"{pace:.2f} steps/s"
        if pace < 0:
            about = f"went back from step {self._told_step}"
        elif pace > 0 and trainer.max_steps > 0:
            about += f", {(trainer.max_steps - step) / pace / 60:.0f} min left"
        goal = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
        self._console.print(f"step {step}{goal} loss {loss} {about}", highlight=False)
        self._told_at, self._told_step = now, step

"""Progress of a fit: lines in the log, and the file of losses."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.optim import Optimizer
from typing_extensions import override

from stabilizer.clock import Clock, SystemClock
from trainer.module.idefics_module import IdeficsModule


class ProgressLine(Callback):
    """Shows completed steps, loss and remaining time.

    Without a terminal, a line is logged every `log_seconds`.
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
            console: Output.
            clock: Source of time.
            log_seconds: Seconds between two lines of a log.
        """
        self._console = console or Console()
        self._clock = clock or SystemClock()
        self._log_seconds = log_seconds
        self._logged_at = 0.0
        self._logged_step = 0
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
        self._logged_at, self._logged_step = self._clock.monotonic(), trainer.global_step

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
        is_due = self._progress.disable and now - self._logged_at >= self._log_seconds
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
        """Release the terminal before the error is printed."""
        self._progress.stop()

    def _tell(self, trainer: Trainer, loss: str, now: float) -> None:
        step = trainer.global_step
        pace = (step - self._logged_step) / (now - self._logged_at)
        about = f"{pace:.2f} steps/s"
        if pace < 0:
            about = f"rewound from step {self._logged_step}"
        elif pace > 0 and trainer.max_steps > 0:
            about += f", {(trainer.max_steps - step) / pace / 60:.0f} min left"
        goal = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
        self._console.print(f"step {step}{goal} loss {loss} {about}", highlight=False)
        self._logged_at, self._logged_step = now, step


class LossRecorder(Callback):
    """Writes attempt, step, loss, z_loss, lr and seconds of every optimizer step, and flushes.

    A step that is not above the one before begins a new attempt: the job was rewound. A resume
    appends to the file and begins a new attempt as well. Losses are means over the microbatches of
    the step. Non-finite numbers are written as the strings "NaN", "Infinity" and
    "-Infinity", which `float()` reads.
    """

    def __init__(
        self, path: Path, clock: Clock | None = None, *, resumed_step: int | None = None
    ) -> None:
        """Write to `path`.

        Args:
            path: The file.
            clock: Measures the seconds since now.
            resumed_step: Completed steps at which a job resumes and appends to the file; None:
                the file is written from scratch.

        Raises:
            OSError: The file cannot be written.
        """
        self.attempt = 1
        self.losses: list[float] = []
        """Losses of the newest attempt's history, by step from 1."""
        if resumed_step is not None:
            self._read(path, resumed_step)
        self._file: TextIO = (
            path.open("w", encoding="utf-8")
            if resumed_step is None
            else path.open("a", encoding="utf-8")
        )
        self._clock = clock or SystemClock()
        self._began = self._clock.monotonic()
        self._sums: dict[str, float] = {}
        self._microbatches = 0
        self._lr = 0.0
        self._last_step = resumed_step or 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Note the rate that this step is made with."""
        self._lr = float(optimizer.param_groups[0]["lr"])

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write a line if this microbatch completed a step."""
        if isinstance(pl_module, IdeficsModule):
            for name, value in pl_module.last_losses.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._microbatches += 1
        if trainer.global_step == self._last_step:
            return
        means = {name: value / self._microbatches for name, value in self._sums.items()}
        self._write(trainer.global_step, means)
        self._sums, self._microbatches = {}, 0

    def _read(self, path: Path, step: int) -> None:
        """Keep what an earlier process has written, up to a step; begin the next attempt."""
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # the process died in the middle of a line
            os.truncate(path, len(whole))  # rewriting the rest could lose it, on a full disk
        for line in map(json.loads, whole.splitlines()):
            self.losses[line["step"] - 1 :] = [float(line["loss"])]
            self.attempt = line["attempt"] + 1
        del self.losses[step:]

    def _write(self, step: int, means: dict[str, float]) -> None:
        if step <= self._last_step:
            self.attempt += 1
        self._last_step = step
        self.losses[step - 1 :] = [means["loss"]]
        line: dict[str, Any] = {
            "attempt": self.attempt,
            "step": step,
            **means,
            "lr": self._lr,
            "seconds": round(self._clock.monotonic() - self._began, 4),
        }
        self._file.write(json.dumps({key: as_json(value) for key, value in line.items()}) + "\n")
        self._file.flush()


def as_json(value: object) -> object:
    """Return a value that strict JSON can hold; non-finite numbers become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return "NaN"
        return "Infinity" if value > 0 else "-Infinity"
    return value

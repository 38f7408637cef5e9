"""The losses file: one JSON line per optimizer step, for programs to read."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from stabilizer.clock import Clock, SystemClock
from trainer.module.idefics_module import IdeficsModule


class LossRecorder(Callback):
    """Writes attempt, step, loss, z_loss, lr and seconds of every optimizer step, and flushes.

    A step that does not lie above the one before begins a new attempt: the job was rewound. So does
    a resume, which goes on behind what is in the file. Losses are means over the microbatches of
    the step. Numbers that are not finite are written as the strings "NaN", "Infinity" and
    "-Infinity", which `float()` reads.
    """

    def __init__(
        self, path: Path, clock: Clock | None = None, *, resumed_step: int | None = None
    ) -> None:
        """Write to `path`.

        Args:
            path: The file.
            clock: Measures the seconds since now.
            resumed_step: Completed steps at which a job goes on, behind what the file holds; None:
                the file begins anew.

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
        """Take over what an earlier process has written, up to a step; the next attempt begins."""
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # the process died in the middle of a line
            os.truncate(path, len(whole))  # writing the rest anew could lose it, on a full disk
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

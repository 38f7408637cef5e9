"""The callback that writes the ledger while a job trains."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from trainer.data.loader import StreamLoader
from trainer.data.records.ledger import Ledger, LedgerEntry


class StreamRecorder(Callback):
    """Writes down, at every step, which documents this rank read for it, and their losses.

    Losses are those that the module leaves in `last_document_losses`: two tensors [D] for the D
    documents of a microbatch, the mean of each and its number of predicted tokens. A step that does
    not lie above the one before begins a new attempt.
    """

    def __init__(self, ledger: Ledger, loader: StreamLoader) -> None:
        """Write what is read of `loader`."""
        self._ledger = ledger
        self._loader = loader
        self._seen_windows = len(loader.skipped_windows)
        self._last_step = 0
        self._parts: list[dict[str, Any]] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin behind the steps that are done."""
        self._last_step = trainer.global_step
        self._parts = []

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a new attempt where the job has gone back."""
        if trainer.global_step < self._last_step:
            self._last_step = trainer.global_step
            self._parts = []
            self._ledger.begin_attempt()

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note a microbatch, and write a line if it completed a step."""
        self._parts.append(
            {
                "positions": batch["positions"],
                "sample_ids": batch["sample_ids"],
                "sources": batch["source"],
                "rows": batch["rows"],
                "losses": _losses(getattr(pl_module, "last_document_losses", None)),
                "skipped": batch["skipped"],
            }
        )
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        self._write()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the file."""
        self._ledger.close()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the file."""
        self._ledger.close()

    def _write(self) -> None:
        parts, self._parts = self._parts, []
        windows = self._loader.skipped_windows
        rows: list[int] = []
        before = 0
        for part in parts:
            rows += [row + before for row in part["rows"]]
            before += len(part["positions"])
        joined = {name: tuple(each for part in parts for each in part[name]) for name in parts[0]}
        entry = LedgerEntry(
            **joined | {"rows": tuple(rows)},
            attempt=self._ledger.attempt,
            step=self._last_step,
            rank=self._ledger.rank,
            skipped_windows=tuple(windows[self._seen_windows :]),
        )
        self._seen_windows = len(windows)
        self._ledger.write(entry)


def _losses(left: tuple[Tensor, Tensor] | None) -> list[float | None]:
    """Return the mean loss of each document; None where nothing of it is predicted."""
    if left is None:
        return []
    means, tokens = torch.stack(left).tolist()  # both in one copy to the host
    return [mean if count else None for mean, count in zip(means, tokens, strict=True)]

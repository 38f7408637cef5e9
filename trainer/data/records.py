"""The record of which documents went into which step."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from trainer.data.loader import StreamLoader

LEDGER_FOLDER: Final = "ledger"
_NAME: Final = re.compile(r"attempt-(\d{4,})-step-(\d{8,})-rank-(\d+)\.jsonl")
_PARTS: Final = 16  # files within the limit, so that a sixteenth goes at a time

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """The documents of one rank in one step."""

    attempt: int
    """Stretch between two starts or rewinds, from 1."""
    step: int
    """Completed optimizer steps after it."""
    rank: int
    """Which rank."""
    positions: Sequence[int]
    """Of each sequence in the stream."""
    sample_ids: Sequence[str]
    """Of each document."""
    sources: Sequence[str]
    """Of each document."""
    rows: Sequence[int]
    """Place in `positions` of each document's sequence."""
    losses: Sequence[float | None] = ()
    """Mean loss of each document, NaN if it was; None where nothing was predicted; empty: not
    recorded."""
    skipped: Sequence[Sequence[str]] = ()
    """What, source, reason and id of what was passed over."""
    skipped_windows: Sequence[Sequence[int]] = ()
    """Windows of the stream, [from, to), that were skipped on command since the step before."""


class _LedgerSegment(NamedTuple):
    attempt: int
    step: int
    rank: int
    path: Path


def segments(folder: Path) -> list[_LedgerSegment]:
    """Return the files of a ledger, oldest first; none where there is no ledger."""
    if not folder.is_dir():
        return []
    matches = ((path, _NAME.fullmatch(path.name)) for path in folder.iterdir())
    found = [
        _LedgerSegment(int(match[1]), int(match[2]), int(match[3]), path)
        for path, match in matches
        if match
    ]
    return sorted(found)


def read_ledger(folder: Path) -> Iterator[LedgerEntry]:
    """Yield what a ledger holds, by attempt, step and rank.

    A last line that was cut off, since the process was killed, is left out. So is what a later line
    of the same attempt, step and rank replaces.
    """
    by_attempt: dict[int, dict[tuple[int, int], LedgerEntry]] = {}
    for segment in segments(folder):
        entries = by_attempt.setdefault(segment.attempt, {})
        for entry in _read_segment(segment.path):
            entries[entry.step, entry.rank] = entry
    for _, entries in sorted(by_attempt.items()):
        yield from (entry for _, entry in sorted(entries.items()))


def _read_segment(path: Path) -> Iterator[LedgerEntry]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                content: dict[str, Any] = json.loads(line)
                losses = [_from_json(value) for value in content.pop("losses", [])]
                yield LedgerEntry(**content, losses=losses)


@dataclass(slots=True)
class SampleLedger:
    """Writes the ledger of one rank. A full disk ends the ledger, never the training."""

    folder: Path
    """Where the files go; created with the first one."""
    max_bytes: int
    """Most bytes of all files of this rank."""
    rank: int = 0
    """Of this process."""
    attempt: int = 1
    """Number of the current attempt."""
    has_failed: bool = False
    """Whether writing has failed; then nothing more is written."""
    _file: TextIO | None = field(default=None, init=False)
    _written: int = field(default=0, init=False)

    @classmethod
    def begin(cls, folder: Path, max_bytes: int, *, rank: int, resumes: bool) -> SampleLedger:
        """Begin a ledger, or the next attempt of one.

        All ranks call this before one of them writes: attempts are counted over all ranks, so that
        a new rank starts with the same number.

        Args:
            folder: Where its files are.
            max_bytes: Most bytes of all files of this rank.
            rank: Of this process.
            resumes: Whether the run resumes; otherwise files of an earlier run are removed, those
                of ranks that no longer exist by rank 0.
        """
        found = segments(folder)
        if resumes:
            newest = max((segment.attempt for segment in found), default=0)
            return cls(folder, max_bytes, rank, newest + 1)
        ledger = cls(folder, max_bytes, rank)
        with _SurviveWriteErrors(ledger):
            for segment in found:
                if rank in (0, segment.rank):
                    segment.path.unlink(missing_ok=True)
        return ledger

    def begin_attempt(self) -> None:
        """Begin the next attempt: the job was rewound."""
        self.close()
        self.attempt += 1

    def write(self, entry: LedgerEntry) -> None:
        """Write one line, and flush it."""
        if self.has_failed:
            return
        content = asdict(entry)
        content["losses"] = [_to_json(value) for value in entry.losses]
        line = json.dumps({key: value for key, value in content.items() if value != ()}) + "\n"
        with _SurviveWriteErrors(self):
            if self._file is None or self._written + len(line) > self.max_bytes // _PARTS:
                self._begin_segment(entry.step)
            if self._file is not None:
                self._file.write(line)
                self._file.flush()
                self._written += len(line)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            with _SurviveWriteErrors(self):
                file.close()

    def _begin_segment(self, step: int) -> None:
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._drop_oldest()
        name = f"attempt-{self.attempt:04d}-step-{step:08d}-rank-{self.rank}.jsonl"
        self._file = (self.folder / name).open("w", encoding="utf-8")
        self._written = 0

    def _drop_oldest(self) -> None:
        mine = [segment.path for segment in segments(self.folder) if segment.rank == self.rank]
        sizes = [path.stat().st_size for path in mine]
        room = self.max_bytes - self.max_bytes // _PARTS
        for path, size in zip(mine, sizes, strict=True):
            if sum(sizes) <= room:
                break
            path.unlink()
            sizes = sizes[1:]
            logger.info("the ledger is full: deleted %s (%d bytes)", path.name, size)


class _SurviveWriteErrors:
    """Log the first write error of the ledger; training continues."""

    def __init__(self, ledger: SampleLedger) -> None:
        self._ledger = ledger

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, OSError):
            return False
        if not self._ledger.has_failed:
            logger.error("the ledger of documents cannot be written any more: %s", error)
        self._ledger.has_failed = True
        return True


def _to_json(value: float | None) -> float | str | None:
    """Return null where nothing was predicted (None), and a string for a non-finite value."""
    if value is None or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _from_json(value: float | str | None) -> float | None:
    return None if value is None else float(value)


class StreamRecorder(Callback):
    """Records the documents of every step on this rank, and their losses.

    Losses come from `last_document_losses` of the module: two tensors [D] for the D documents of a
    microbatch, the mean loss and the number of predicted tokens of each. A step that is not above
    the one before begins a new attempt.
    """

    def __init__(self, ledger: SampleLedger, loader: StreamLoader) -> None:
        """Record what `loader` reads."""
        self._ledger = ledger
        self._loader = loader
        self._seen_windows = len(loader.skipped_windows)
        self._last_step = 0
        self._parts: list[dict[str, Any]] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin after the completed steps."""
        self._last_step = trainer.global_step
        self._parts = []

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a new attempt if the job was rewound."""
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
        """Record a microbatch, and write a line if it completed a step."""
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

"""The checkpoints of a run: list, find the newest, remove old ones."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.checkpoints.folders import CheckpointError, remove_folder, sweep, write_json

HEALTH_FILE: Final = "health.json"

_log = logging.getLogger(__name__)
_NAME: Final = re.compile(r"attempt-(\d{4,})-step-(\d{8,})")


@dataclass(frozen=True, slots=True, order=True)
class StoredCheckpoint:
    """A stored checkpoint; ordered as they were written."""

    attempt: int
    """Stretch between two starts or rewinds, from 1."""
    step: int
    """Completed optimizer steps."""
    path: Path
    """Its folder."""

    @property
    def is_healthy(self) -> bool:
        """Whether all its values are finite and, in a monitored run, no alert followed."""
        return bool(_read_health(self.path).get("healthy"))

    @property
    def is_finite(self) -> bool:
        """Whether all its values are finite, as far as known."""
        return bool(_read_health(self.path).get("finite", True))

    @property
    def is_abandoned(self) -> bool:
        """Whether the run was rewound to before it."""
        return bool(_read_health(self.path).get("abandoned"))


class CheckpointStore:
    """The folder in which a run keeps its checkpoints; used by one process of the run."""

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        """Open a folder; it need not exist.

        Args:
            folder: Where they are.
            keep: Newest ones that are kept; the newest healthy and the newest finite one
                are kept beside them.
        """
        self.folder = folder
        self._keep = keep

    def place(self, attempt: int, step: int) -> Path:
        """Return the folder for a checkpoint."""
        return self.folder / f"attempt-{attempt:04d}-step-{step:08d}"

    def all(self) -> list[StoredCheckpoint]:
        """Return the checkpoints, oldest first, abandoned ones included."""
        if not self.folder.is_dir():
            return []
        matches = ((path, _NAME.fullmatch(path.name)) for path in self.folder.iterdir())
        return sorted(
            StoredCheckpoint(int(match[1]), int(match[2]), path) for path, match in matches if match
        )

    def usable(self) -> list[StoredCheckpoint]:
        """Return the checkpoints that are not abandoned, oldest first."""
        return [checkpoint for checkpoint in self.all() if not checkpoint.is_abandoned]

    def holds(self, folder: Path) -> bool:
        """Return whether a checkpoint's folder is in this store."""
        return folder.resolve().parent == self.folder.resolve()

    def latest(self) -> StoredCheckpoint | None:
        """Return the newest finite checkpoint that is not abandoned, or None."""
        for checkpoint in reversed(self.usable()):
            if checkpoint.is_finite:
                return checkpoint
            _log.warning("%s holds non-finite values: skipped", checkpoint.path)
        return None

    def mark(
        self,
        checkpoint: StoredCheckpoint,
        *,
        healthy: bool = False,
        abandoned: bool = False,
        finite: bool | None = None,
    ) -> None:
        """Mark a checkpoint; marks are never taken back.

        Args:
            checkpoint: Which one.
            healthy: Whether it is known to be healthy now.
            abandoned: Whether the run was rewound to before it.
            finite: Whether all its numbers are finite; None: as known before.

        Raises:
            OSError: It cannot be written.
        """
        health = _read_health(checkpoint.path)
        health |= {"healthy": healthy or bool(health.get("healthy"))}
        health |= {"abandoned": abandoned or bool(health.get("abandoned"))}
        if finite is not None:
            health |= {"finite": finite}
        write_json(checkpoint.path / HEALTH_FILE, health)

    def abandon(self, behind: int) -> Sequence[StoredCheckpoint]:
        """Mark the checkpoints after a step to which the run was rewound.

        Raises:
            OSError: It cannot be written.
        """
        left = [checkpoint for checkpoint in self.usable() if checkpoint.step > behind]
        for checkpoint in left:
            self.mark(checkpoint, abandoned=True)
        return left

    def sweep(self) -> None:
        """Remove the remains of failed writes; call it only while no write is running.

        Raises:
            OSError: Something cannot be removed.
        """
        sweep(self.folder)

    def tidy(self) -> None:
        """Remove old checkpoints; keep the newest healthy and the newest finite one.

        Raises:
            OSError: Something cannot be removed.
        """
        self.sweep()
        usable = self.usable()
        kept = set(usable[-self._keep :])
        kept |= set([checkpoint for checkpoint in usable if checkpoint.is_healthy][-1:])
        kept |= set([checkpoint for checkpoint in usable if checkpoint.is_finite][-1:])
        for checkpoint in self.all():
            if checkpoint not in kept:
                remove_folder(checkpoint.path)


def find_checkpoint(store: CheckpointStore, wanted: str) -> Path | None:
    """Return the checkpoint that `--resume` selects.

    Args:
        store: Of this run.
        wanted: latest: the newest one that is finite; auto: the same, or none if there is none at
            all; otherwise a folder.

    Raises:
        CheckpointError: There is none, or none that is finite.
    """
    if wanted not in ("latest", "auto"):
        folder = Path(wanted)
        if not folder.is_dir():
            raise CheckpointError(
                f"--resume: {wanted} is no folder; allowed: latest, auto, or a checkpoint's folder"
            )
        return folder
    newest = store.latest()
    if newest is None and store.usable():
        raise CheckpointError(
            f"--resume: no checkpoint in {store.folder} is finite; allowed: another training.out, "
            "or the folder of one of them, to resume from it anyway"
        )
    if newest is None and wanted == "latest":
        raise CheckpointError(
            f"--resume: there is no checkpoint in {store.folder}; allowed: auto, to start from "
            "scratch then, and training.checkpoint_every above 0, to have one the next time"
        )
    return None if newest is None else newest.path


def _read_health(path: Path) -> dict[str, bool]:
    try:
        health = json.loads((path / HEALTH_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # its health is not known yet
    return health if isinstance(health, dict) else {}

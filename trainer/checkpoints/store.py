"""The checkpoints of a run: which there are, which is the newest, which are kept."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.checkpoints.errors import CheckpointError
from trainer.checkpoints.folders import remove_folder, sweep, write_json

HEALTH_FILE: Final = "health.json"
_NAME: Final = re.compile(r"attempt-(\d{4,})-step-(\d{8,})")


@dataclass(frozen=True, slots=True, order=True)
class StoredCheckpoint:
    """A checkpoint on storage; ordered as they were written."""

    attempt: int
    """Stretch between two starts or rewinds, from 1."""
    step: int
    """Completed optimizer steps."""
    path: Path
    """Its folder."""

    @property
    def is_healthy(self) -> bool:
        """Whether all its numbers are finite and, in a watched run, no alert followed."""
        return bool(_read_health(self.path).get("healthy"))

    @property
    def is_abandoned(self) -> bool:
        """Whether the run went back behind it: what it holds has been thrown away."""
        return bool(_read_health(self.path).get("abandoned"))


class CheckpointStore:
    """The folder in which a run keeps its checkpoints; used by one process of the run."""

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        """Look at a folder; it need not be there.

        Args:
            folder: Where they are.
            keep: Newest ones that are kept; the newest healthy one is kept beside them.
        """
        self.folder = folder
        self._keep = keep

    def place(self, attempt: int, step: int) -> Path:
        """Return where a checkpoint belongs."""
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
        """Return those that have not been abandoned, oldest first."""
        return [checkpoint for checkpoint in self.all() if not checkpoint.is_abandoned]

    def latest(self) -> StoredCheckpoint | None:
        """Return the newest one that has not been abandoned; None if there is none."""
        return next(reversed(self.usable()), None)

    def mark(
        self, checkpoint: StoredCheckpoint, *, healthy: bool = False, abandoned: bool = False
    ) -> None:
        """Note what is known of a checkpoint; what was known before stays.

        Raises:
            OSError: It cannot be written.
        """
        health = _read_health(checkpoint.path)
        health |= {"healthy": healthy or bool(health.get("healthy"))}
        health |= {"abandoned": abandoned or bool(health.get("abandoned"))}
        write_json(checkpoint.path / HEALTH_FILE, health)

    def abandon(self, behind: int) -> Sequence[StoredCheckpoint]:
        """Mark the checkpoints behind a step to which the run has gone back.

        Raises:
            OSError: It cannot be written.
        """
        left = [checkpoint for checkpoint in self.usable() if checkpoint.step > behind]
        for checkpoint in left:
            self.mark(checkpoint, abandoned=True)
        return left

    def tidy(self) -> None:
        """Remove what need not be kept; the newest healthy one always stays.

        Raises:
            OSError: Something cannot be removed.
        """
        sweep(self.folder)
        usable = self.usable()
        kept = set(usable[-self._keep :])
        kept |= set([checkpoint for checkpoint in usable if checkpoint.is_healthy][-1:])
        for checkpoint in self.all():
            if checkpoint not in kept:
                remove_folder(checkpoint.path)


def find_checkpoint(store: CheckpointStore, wanted: str) -> Path | None:
    """Return what `--resume` means.

    Args:
        store: Of this run.
        wanted: latest; auto: the latest one, or none if there is none; otherwise a folder.

    Raises:
        CheckpointError: There is none.
    """
    if wanted not in ("latest", "auto"):
        folder = Path(wanted)
        if not folder.is_dir():
            raise CheckpointError(
                f"--resume: {wanted} is no folder; allowed: latest, auto, or a checkpoint's folder"
            )
        return folder
    newest = store.latest()
    if newest is None and wanted == "latest":
        raise CheckpointError(
            f"--resume: there is no checkpoint in {store.folder}; allowed: auto, to start anew "
            "then, and training.checkpoint_every above 0, to have one the next time"
        )
    return None if newest is None else newest.path


def _read_health(path: Path) -> dict[str, bool]:
    try:
        health = json.loads((path / HEALTH_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # not judged yet
    return health if isinstance(health, dict) else {}

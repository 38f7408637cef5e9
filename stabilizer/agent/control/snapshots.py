"""A bounded ring of snapshots in host memory.

Used by the training thread only, but for `healthy`, which the telemetry thread replaces as a whole.
All ranks of a job drop the same snapshots: which one is protected is agreed on at step boundaries.


How much memory this process may use: the machine's, or less in a container or a batch job.
"""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

from stabilizer.errors import CommandRejectedError, ConfigurationError
from stabilizer.protocol.batches import SnapshotInfo
from stabilizer.protocol.commands import RejectReason, SnapshotTarget

logger = logging.getLogger(__name__)

_MEMORY_SHARE: Final = 0.25
"""Of the memory that the process may use, unless the job says otherwise."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A state of the job to go back to; `state` is None if it was not finite."""

    info: SnapshotInfo
    state: Any | None


def default_max_bytes() -> int:
    """A quarter of the machine's memory, or of the container's where that is limited."""
    return int(memory_limit_bytes() * _MEMORY_SHARE)


def _sequence(snapshot: Snapshot) -> int:
    return int(snapshot.info.id.rpartition("-")[2])


class SnapshotRing:
    """Holds the newest snapshots, bounded in number and bytes.

    Never dropped for room: the newest snapshot that the collector calls healthy, and the last one
    that can be restored.
    """

    def __init__(
        self,
        capacity: int = 6,
        max_bytes: int | None = None,
        on_drop: Callable[[Any], None] | None = None,
    ) -> None:
        if capacity < 1:
            raise ConfigurationError(f"keep_snapshots is {capacity}; it must be 1 or more")
        if max_bytes is not None and max_bytes < 1:
            raise ConfigurationError(f"snapshot_bytes is {max_bytes}; it must be 1 or more")
        self.capacity = capacity
        self.max_bytes = default_max_bytes() if max_bytes is None else max_bytes
        self.healthy: tuple[str, ...] = ()
        """Ids that the collector calls healthy, as last heard."""
        self._protected = 0
        self._on_drop = on_drop
        self._snapshots: list[Snapshot] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._snapshots)

    @property
    def num_bytes(self) -> int:
        """Host memory held."""
        return sum(snapshot.info.num_bytes for snapshot in self._snapshots)

    def next_id(self, step: int) -> str:
        """A name that no other snapshot of this process has or had; the same on every rank."""
        self._sequence += 1
        return f"step{step}-{self._sequence}"

    def newest_healthy(self) -> int:
        """Sequence number of the newest restorable snapshot that is called healthy; 0 for none."""
        healthy = set(self.healthy)
        numbers = (_sequence(s) for s in self._restorable if s.info.id in healthy)
        return max(numbers, default=0)

    def protect(self, sequence: int) -> None:
        """Never drop the snapshot with this sequence number for room; 0 for none."""
        self._protected = sequence

    def make_room(self) -> None:
        """Drop what a new snapshot of the usual size would drive out, so that its memory is reused.

        Keeps at least one restorable snapshot: until the new one stands, it is the only way back.
        """
        expected = max((snapshot.info.num_bytes for snapshot in self._snapshots), default=0)
        self._shrink(self.capacity - 1, self.max_bytes - expected)

    def add(self, snapshot: Snapshot) -> None:
        """Take in the newest snapshot; older ones go as the bounds ask for it."""
        if snapshot.state is None:  # only its name is kept, and only of the newest such
            self._drop(lambda old: old.state is None)
        self._snapshots.append(snapshot)
        self._shrink(self.capacity, self.max_bytes)
        if self.num_bytes > self.max_bytes:
            logger.warning(
                "snapshots take %d bytes, more than the %d allowed: one must stay",
                self.num_bytes,
                self.max_bytes,
            )

    def find(self, target: SnapshotTarget, *, any_attempt: bool = False) -> Snapshot:
        """Find the snapshot a command names.

        Args:
            target: Its name in full.
            any_attempt: For ranks that do not hear the collector and so know no attempt numbers.

        Raises:
            CommandRejectedError: It is not held, is another than the one meant, or is not finite.
        """
        for snapshot in self._snapshots:
            info = snapshot.info
            if info.id == target.snapshot_id:
                is_attempt = any_attempt or info.attempt == target.attempt
                if not is_attempt or info.step != target.step:
                    break
                if snapshot.state is None:
                    raise CommandRejectedError(
                        f"snapshot {info.id} holds NaN or Inf",
                        reason=RejectReason.SNAPSHOT_NOT_FINITE,
                    )
                return snapshot
        held = ", ".join(f"{s.info.id} (attempt {s.info.attempt})" for s in self._snapshots)
        raise CommandRejectedError(
            f"snapshot {target.snapshot_id} of attempt {target.attempt} at step {target.step} is "
            f"not held; held are: {held or 'none'}",
            reason=RejectReason.UNKNOWN_SNAPSHOT,
        )

    def drop_after(self, step: int) -> None:
        """Drop what lies behind a step: after a rollback it is of the abandoned branch."""
        self._drop(lambda snapshot: snapshot.info.step > step)

    def mark_not_finite(self, snapshot_id: str) -> None:
        """Another rank's part of this snapshot is not finite: keep its name, free its memory."""
        for index, snapshot in enumerate(self._snapshots):
            if snapshot.info.id == snapshot_id and snapshot.state is not None:
                self._release(snapshot)
                info = snapshot.info.model_copy(update={"finite": False, "num_bytes": 0})
                self._snapshots[index] = Snapshot(info, None)

    def shift_attempts(self, by: int) -> None:
        """Renumber: the collector has said late which number the job's first attempt has."""
        self._snapshots = [
            Snapshot(s.info.model_copy(update={"attempt": s.info.attempt + by}), s.state)
            for s in self._snapshots
        ]

    def inventory(self) -> tuple[SnapshotInfo, ...]:
        """What is held now, oldest first."""
        return tuple(snapshot.info for snapshot in self._snapshots)

    def clear(self) -> None:
        """Drop everything."""
        self._drop(lambda _: True)

    def _shrink(self, capacity: int, max_bytes: int) -> None:
        while len(self._restorable) > max(capacity, 1) or self.num_bytes > max_bytes:
            victim = self._victim()
            if victim is None:
                return
            self._drop(partial(operator.is_, victim))

    @property
    def _restorable(self) -> Sequence[Snapshot]:
        return [snapshot for snapshot in self._snapshots if snapshot.state is not None]

    def _victim(self) -> Snapshot | None:
        droppable = (s for s in self._restorable[:-1] if _sequence(s) != self._protected)
        return next(droppable, None)

    def _drop(self, condition: Callable[[Snapshot], bool]) -> None:
        for snapshot in self._snapshots:
            if condition(snapshot):
                self._release(snapshot)
        self._snapshots = [s for s in self._snapshots if not condition(s)]

    def _release(self, snapshot: Snapshot) -> None:
        if snapshot.state is not None and self._on_drop is not None:
            self._on_drop(snapshot.state)


_ROOT = Path("/")


def memory_limit_bytes(root: Path = _ROOT) -> int:
    """Return the smaller of the machine's memory and the least limit of the cgroups around us.

    A limit that cannot be read counts as none: training starts either way.

    Args:
        root: Where `proc` and `sys` lie.

    Source:
        Linux, admin-guide/cgroup-v2.rst (`memory.max`) and cgroup-v1/memory.rst
        (`memory.limit_in_bytes`). A limit binds everything below it, so those of the parents count.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    for mount, name, group in _groups(root):
        # Inside a container the mount may begin at the container's own group while `proc` tells
        # the host's path: then only the mount itself exists, and it holds the limit.
        for folder in (group, *group.parents):
            limit = _read(mount / folder.relative_to("/") / name)
            if limit is not None:
                yield limit


def _groups(root: Path) -> Iterator[tuple[Path, str, PurePosixPath]]:
    """Mount, name of the file with the limit, and path of each group that may hold one."""
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        group = PurePosixPath(path)
        if not group.is_absolute() or ".." in group.parts:  # outside of what is mounted here
            group = PurePosixPath("/")
        if number == "0" and not controllers:
            yield mounts, "memory.max", group
        elif "memory" in controllers.split(","):
            yield mounts / "memory", "memory.limit_in_bytes", group


def _read(file: Path) -> int | None:
    try:
        text = file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit

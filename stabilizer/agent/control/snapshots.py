"""A bounded ring of snapshots in host memory.

Used by the training thread only, except `healthy`, which the telemetry thread replaces as a whole.
All ranks of a job drop the same snapshots: they agree at step boundaries on which one is protected.
"""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Final, Self

from stabilizer.errors import CommandRejectedError, ConfigurationError
from stabilizer.protocol.batches import SnapshotInfo
from stabilizer.protocol.commands import RejectReason, SnapshotTarget

logger = logging.getLogger(__name__)

_MAX_FAILURES: Final = 3
"""Failed snapshots in a row after which no more are taken."""
_MEMORY_SHARE: Final = 0.25
"""Share of the memory limit that snapshots may use by default."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A restorable state of the job; `state` is None if it was not finite."""

    info: SnapshotInfo
    state: Any | None


class CaughtError:
    """Catches any error of the block: hooks of the job may raise anything."""

    error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if isinstance(error, Exception):
            self.error = error
            return True
        return False


class SnapshotAttempts:
    """Takes snapshots; an error while copying costs the snapshot, never the job."""

    def __init__(self) -> None:
        self.obstacle: str | None = None
        """Why no more are taken; None if they are."""
        self._failures = 0

    def take(self, step: int, copy: Callable[[], Snapshot]) -> Snapshot | None:
        """Return the snapshot that `copy` makes; None if it raises."""
        with CaughtError() as copying:
            snapshot = copy()
            self._failures = 0
            return snapshot
        self._failures += 1
        logger.warning("no snapshot at step %d: %r", step, copying.error)
        # A TypeError is copy.deepcopy of a lock, generator or open file: it would fail again.
        if isinstance(copying.error, TypeError) or self._failures >= _MAX_FAILURES:
            self.obstacle = f"the job's state cannot be copied: {copying.error}"
            logger.warning("this job cannot be rewound: %s", self.obstacle)
        return None


def default_max_bytes() -> int:
    """Return a quarter of the machine's memory, or of the container's limit."""
    return int(memory_limit_bytes() * _MEMORY_SHARE)


def _sequence(snapshot: Snapshot) -> int:
    return int(snapshot.info.id.rpartition("-")[2])


class SnapshotRing:
    """Keeps the newest snapshots, bounded in number and bytes.

    Never evicted: the newest snapshot that the collector calls healthy, and the last that can be
    restored.
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
        """Ids of healthy snapshots, from the collector's last answer."""
        self._protected = 0
        self._on_drop = on_drop
        self._snapshots: list[Snapshot] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._snapshots)

    @property
    def num_bytes(self) -> int:
        """Host memory in use."""
        return sum(snapshot.info.num_bytes for snapshot in self._snapshots)

    def next_id(self, step: int) -> str:
        """Return an id that is unique in this process and equal on every rank."""
        self._sequence += 1
        return f"step{step}-{self._sequence}"

    def newest_healthy(self) -> int:
        """Return the sequence number of the newest healthy, restorable snapshot; 0 for none."""
        healthy = set(self.healthy)
        numbers = (_sequence(s) for s in self._restorable if s.info.id in healthy)
        return max(numbers, default=0)

    def protect(self, sequence: int) -> None:
        """Never evict the snapshot with this sequence number; 0 for none."""
        self._protected = sequence

    def make_room(self) -> None:
        """Evict what a new snapshot of the usual size would replace, so that its memory is reused.

        Keeps at least one restorable snapshot: until the new one is complete, it is the only one.
        """
        expected = max((snapshot.info.num_bytes for snapshot in self._snapshots), default=0)
        self._shrink(self.capacity - 1, self.max_bytes - expected)

    def add(self, snapshot: Snapshot) -> None:
        """Add the newest snapshot; evict older ones to stay within the bounds."""
        if snapshot.state is None:  # keep its id only, and only of the newest such
            self._drop(lambda old: old.state is None)
        self._snapshots.append(snapshot)
        self._shrink(self.capacity, self.max_bytes)
        if self.num_bytes > self.max_bytes:
            logger.warning(
                "snapshots take %d bytes, more than the %d allowed: one must be kept",
                self.num_bytes,
                self.max_bytes,
            )

    def find(self, target: SnapshotTarget) -> Snapshot:
        """Find the snapshot that a command for this process names.

        Raises:
            CommandRejectedError: It is not held, differs from the target, or is not finite.
        """
        for snapshot in self._snapshots:
            info = snapshot.info
            if info.id == target.snapshot_id:
                if info.step != target.step or target.attempt_id not in (None, info.attempt_id):
                    break
                if snapshot.state is None:
                    raise CommandRejectedError(
                        f"snapshot {info.id} holds NaN or Inf",
                        reason=RejectReason.SNAPSHOT_NOT_FINITE,
                    )
                return snapshot
        held = ", ".join(s.info.id for s in self._snapshots)
        raise CommandRejectedError(
            f"snapshot {target.snapshot_id} of attempt {target.attempt} at step {target.step} is "
            f"not held; held: {held or 'none'}",
            reason=RejectReason.UNKNOWN_SNAPSHOT,
        )

    def drop_after(self, step: int) -> None:
        """Drop snapshots after a step: a rollback has abandoned them."""
        self._drop(lambda snapshot: snapshot.info.step > step)

    def mark_not_finite(self, snapshot_id: str) -> None:
        """Keep the id and free the memory: another rank's part of this snapshot is not finite."""
        for index, snapshot in enumerate(self._snapshots):
            if snapshot.info.id == snapshot_id and snapshot.state is not None:
                self._release(snapshot)
                info = snapshot.info.model_copy(update={"finite": False, "num_bytes": 0})
                self._snapshots[index] = Snapshot(info, None)

    def inventory(self) -> tuple[SnapshotInfo, ...]:
        """Return the snapshots held, oldest first."""
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
    """Return the memory this process may use: the machine's, or the smallest cgroup limit.

    A limit that cannot be read is ignored: training starts either way.

    Args:
        root: Parent folder of `proc` and `sys`.

    Source:
        Linux, admin-guide/cgroup-v2.rst (`memory.max`) and cgroup-v1/memory.rst
        (`memory.limit_in_bytes`). A limit applies to all descendants, so the parents' limits count.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    for mount, name, group in _groups(root):
        # Inside a container the mount may start at the container's own group while `proc` shows
        # the host's path: then only the mount itself exists, and it has the limit.
        for folder in (group, *group.parents):
            limit = _read(mount / folder.relative_to("/") / name)
            if limit is not None:
                yield limit


def _groups(root: Path) -> Iterator[tuple[Path, str, PurePosixPath]]:
    """Yield the mount, the limit's file name, and the path of each group that may have a limit."""
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        group = PurePosixPath(path)
        if not group.is_absolute() or ".." in group.parts:  # outside the mount
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

"""How much memory this process may use: the machine's, or less in a container or a batch job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

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

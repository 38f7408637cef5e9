"""Checkpoint folders: their names, manifests and errors."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from stabilizer.errors import StabilizerError


class CheckpointError(StabilizerError):
    """A checkpoint could not be written, or is missing, damaged or incompatible."""

    code = "checkpoint_unusable"


MANIFEST_FILE: Final = "manifest.json"
FORMAT: Final = "trainer checkpoint 1"
_PART_SUFFIX: Final = ".part"
_TRASH_SUFFIX: Final = ".trash"
_CHUNK: Final = 1 << 20


def part_of(folder: Path) -> Path:
    """Return the path at which a folder is written before it gets its name."""
    return folder.parent / f".{folder.name}{_PART_SUFFIX}"


def begin_folder(folder: Path) -> Path:
    """Create an empty folder to write to; remains of a failed write are removed.

    Raises:
        OSError: It cannot be made.
    """
    part = part_of(folder)
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    return part


def drop_part(folder: Path) -> None:
    """Remove the remains of a failed write as far as possible: they occupy a full disk."""
    shutil.rmtree(part_of(folder), ignore_errors=True)


def commit_folder(folder: Path, facts: dict[str, Any]) -> None:
    """Give the written folder its name, durably.

    All files are flushed to the disk, sizes and checksums noted, and only then the name is given,
    by a rename that is atomic. A folder of this name that was there is replaced.

    Args:
        folder: The name.
        facts: Put into the manifest.

    Raises:
        OSError: Something cannot be written; the name is not given.
    """
    part = part_of(folder)
    files = [path for path in sorted(part.rglob("*")) if path.is_file()]
    for path in files:
        _flush(path)
    manifest = {
        "format": FORMAT,
        **facts,
        "files": {str(path.relative_to(part)): list(_measure(path)) for path in files},
    }
    write_json(part / MANIFEST_FILE, manifest)
    for inner in {path.parent for path in files} | {part}:
        _flush(inner)
    if folder.exists():
        remove_folder(folder)
    part.rename(folder)
    _flush(folder.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder atomically."""
    trash = folder.parent / f".{folder.name}{_TRASH_SUFFIX}"
    if trash.exists():
        shutil.rmtree(trash)
    folder.rename(trash)
    shutil.rmtree(trash)


def sweep(parent: Path) -> None:
    """Remove the remains of failed writes and removals in a folder."""
    for path in parent.glob(".*"):
        if path.is_dir() and path.suffix in (_PART_SUFFIX, _TRASH_SUFFIX):
            shutil.rmtree(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder.

    Raises:
        CheckpointError: It is not a checkpoint of this format.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a checkpoint of this trainer: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{folder} is not a checkpoint of the format {FORMAT!r}")
    return manifest


def check_files(folder: Path, *, part: int = 0, parts: int = 1) -> None:
    """Compare files with the sizes and checksums of the manifest.

    Args:
        folder: The checkpoint.
        part: Every `parts`-th file from this one on is looked at, so that ranks share the work.
        parts: Number of ranks.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    files = sorted(read_manifest(folder)["files"].items())
    for name, (size, checksum) in files[part::parts]:
        try:
            found = _measure(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder}: {name} cannot be read: {error}") from error
        if found != (size, checksum):
            raise CheckpointError(
                f"{folder}: {name} is damaged: {found[0]} bytes with checksum {found[1]}, written "
                f"were {size} with {checksum}"
            )


def write_json(path: Path, content: object) -> None:
    """Write JSON durably, so that a reader finds the old content or the new one.

    Raises:
        OSError: It cannot be written.
    """
    part = path.parent / f".{path.name}{_PART_SUFFIX}"
    with part.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _measure(path: Path) -> tuple[int, int]:
    """Return size and CRC-32."""
    checksum = size = 0
    with path.open("rb") as file:
        for chunk in _chunks(file):
            checksum = zlib.crc32(chunk, checksum)
            size += len(chunk)
    return size, checksum


def _chunks(file: Any) -> Iterable[bytes]:  # noqa: ANN401  an open binary file
    return iter(lambda: file.read(_CHUNK), b"")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

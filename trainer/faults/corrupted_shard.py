"""A shard whose bytes are damaged, as by a broken disk or an interrupted copy.

The corpus itself is never changed: a folder of links shows all its files, one of them as a damaged
copy.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Annotated, ClassVar, Final, Literal, TypeAlias

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from stabilizer.errors import ConfigurationError
from trainer.faults.base import SETTINGS

Damage: TypeAlias = Literal["bytes", "truncated"]

_BLOCK: Final = 64
"""Bytes that are overwritten together, as a sector is."""
_KEPT: Final = 512
"""Bytes at either end that stay, with all of a Parquet file's footer, so that the file opens."""
_PARQUET: Final = b"PAR1"


@dataclass(kw_only=True, config=SETTINGS)
class CorruptedShard:
    """A file of the corpus is damaged for this run; the corpus itself is never changed.

    The run reads a folder of links below `training.out` in which that file is a damaged copy.
    """

    name: ClassVar[str] = "corrupted_shard"

    shard: str
    """The file, relative to `data.folder`."""
    damage: Damage = "bytes"
    """bytes: in one stretch, 64 bytes in every 4 KiB are overwritten; truncated: the end is gone.
    A Parquet file keeps its footer with `bytes`, so that some of its row groups can be read; one
    that is truncated cannot be opened."""
    part: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Length of the stretch, or of the end, as a part of the file."""

    @field_validator("shard")
    @classmethod
    def _is_in_the_corpus(cls, shard: str) -> str:
        if not is_inside(shard):
            raise PydanticCustomError("shard", "allowed: a file below data.folder, relative to it")
        return shard


def show_corrupted_corpus(
    corpus: Path,
    shard: str,
    view: Path,
    *,
    damage: Damage = "bytes",
    part: float = 0.25,
    seed: int = 0,
) -> Path:
    """Build a folder of links to a corpus in which one file is a damaged copy.

    Folders of the corpus that are links are followed, each a folder of its own in the
    view: whatever is taken away there is a link.

    Args:
        corpus: Folder of the corpus.
        shard: The file, relative to the corpus.
        view: Folder to build; what an earlier call left there is replaced.
        damage: As in `corrupt_file`.
        part: As in `corrupt_file`.
        seed: As in `corrupt_file`.

    Returns:
        `view`, to be read in the place of the corpus.

    Raises:
        ConfigurationError: The corpus has no such file.
    """
    if not is_inside(shard) or not (corpus / shard).is_file():
        raise ConfigurationError(
            f"faults.corrupted_shard.shard: {shard!r} cannot be used; allowed: a file in {corpus}, "
            f"such as {_some_file(corpus)}"
        )
    if view.is_symlink() or view.exists():
        shutil.rmtree(view)
    damaged = view / shard
    for path in list(_files(corpus)):
        target = view / path.relative_to(corpus)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.resolve())
    damaged.parent.mkdir(parents=True, exist_ok=True)
    if damaged.is_symlink():  # writing through it would reach the corpus
        damaged.unlink()
    corrupt_file(corpus / shard, damaged, damage=damage, part=part, seed=seed)
    return view


def is_inside(shard: str) -> bool:
    """Whether a name is relative and stays below the corpus."""
    path = Path(shard)
    return bool(shard.strip()) and not path.is_absolute() and ".." not in path.parts


def corrupt_file(
    source: Path, target: Path, *, damage: Damage = "bytes", part: float = 0.25, seed: int = 0
) -> None:
    """Write a damaged copy of a file.

    Args:
        source: The good file; it is left alone.
        target: The copy.
        damage: bytes: in one stretch of the file, 64 bytes in every 4 KiB are overwritten;
            truncated: the end is missing.
        part: Length of the stretch, or of the end, as a part of the file.
        seed: Start of the random bytes, and of the choice of the stretch.
    """
    content = bytearray(source.read_bytes())
    if damage == "truncated":
        target.write_bytes(bytes(content[: round(len(content) * (1 - part))]))
        return
    random = Random(f"corrupted_shard/{seed}")  # noqa: S311  no secret
    first, last = _KEPT, len(content) - _footer(content)
    length = round(max(last - first, 0) * part)
    start = first + random.randrange(max(last - first - length, 0) + 1)
    for place in range(start, start + length, 4096):
        block = place + random.randrange(min(4096, start + length - place))
        end = min(block + _BLOCK, start + length)
        content[block:end] = random.randbytes(end - block)
    target.write_bytes(bytes(content))


def _footer(content: bytes | bytearray) -> int:
    """Return how many bytes at the end stay."""
    if content.endswith(_PARQUET):  # before it: the length of the footer
        return max(int.from_bytes(content[-8:-4], "little") + 8, _KEPT)
    return _KEPT


def _files(folder: Path, inside: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files below a folder, sorted; a link back to a folder around it is left out."""
    real = folder.resolve()
    if real in inside:
        return
    try:
        entries = sorted(folder.iterdir())
    except PermissionError:  # reported when a source there is read
        return
    for entry in entries:
        if entry.is_dir():
            yield from _files(entry, (*inside, real))
        elif entry.is_file():
            yield entry


def _some_file(corpus: Path) -> str:
    names = (path.relative_to(corpus) for path in _files(corpus))
    found = next((name for name in names if len(name.parts) > 1), None)
    return str(found) if found is not None else "none: it is empty"

"""A shard whose bytes are damaged, as by a broken disk or a copy that broke off.

The corpus itself is never touched: a folder beside it shows all its files, one of them as a damaged
copy.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Final, Literal, TypeAlias

from stabilizer.errors import ConfigurationError

Damage: TypeAlias = Literal["bytes", "truncated"]

_BLOCK: Final = 64
"""Bytes that are overwritten together, as a sector is."""
_HEAD: Final = 512
"""Bytes at either end that stay: headers and the footer of a Parquet file, so that it opens."""


def show_corrupted_corpus(
    corpus: Path, shard: str, view: Path, *, damage: Damage = "bytes", seed: int = 0
) -> Path:
    """Build a folder of links to a corpus in which one file is a damaged copy.

    Args:
        corpus: Folder of the corpus.
        shard: The file, relative to the corpus.
        view: Folder to build; what an earlier call left there is replaced.
        damage: As in `corrupt_file`.
        seed: As in `corrupt_file`.

    Returns:
        `view`, to be read in the place of the corpus.

    Raises:
        ConfigurationError: The corpus has no such file.
    """
    if not (corpus / shard).is_file() or ".." in Path(shard).parts:
        raise ConfigurationError(
            f"faults.corrupted_shard.shard: {shard!r} cannot be used; allowed: a file in {corpus}, "
            f"such as {_some_file(corpus)}"
        )
    if view.is_symlink() or view.exists():
        shutil.rmtree(view)
    for path in sorted(corpus.rglob("*")):
        target = view / path.relative_to(corpus)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.resolve())
    (view / shard).unlink()
    corrupt_file(corpus / shard, view / shard, damage=damage, seed=seed)
    return view


def corrupt_file(source: Path, target: Path, *, damage: Damage = "bytes", seed: int = 0) -> None:
    """Write a damaged copy of a file.

    Args:
        source: The good file; it is left alone.
        target: The copy.
        damage: bytes: a block in every 4 KiB is overwritten, headers and footer stay; truncated:
            the second half is missing.
        seed: Start of the random bytes.
    """
    content = bytearray(source.read_bytes())
    if damage == "truncated":
        target.write_bytes(bytes(content[: len(content) // 2]))
        return
    random = Random(f"corrupted_shard/{seed}")  # noqa: S311  no secret
    inner = len(content) - 2 * _HEAD
    for start in range(_HEAD, _HEAD + max(inner, 0), 4096):
        place = start + random.randrange(max(1, min(4096, _HEAD + inner - start)))
        end = min(place + _BLOCK, len(content) - _HEAD)
        content[place:end] = random.randbytes(max(0, end - place))
    target.write_bytes(bytes(content))


def _some_file(corpus: Path) -> str:
    files = (path for path in sorted(corpus.rglob("*/*")) if path.is_file())
    found = next(files, None)
    return str(found.relative_to(corpus)) if found is not None else "none: it is empty"

"""The files of a corpus: Parquet in the schema of OBELICS, WebDataset shards, and JSON lines."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.sources.parquet import SCHEMA

_ROWS_PER_FILE: Final = 4096
_ROWS_PER_GROUP: Final = 512
_SAMPLES_PER_SHARD: Final = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """A document, as a row of Parquet."""

    images: list[dict[str, bytes | None] | None]
    """Files of pictures, null where a text stands."""
    texts: list[str | None]
    """Paragraphs, null where a picture stands."""
    metadata: str
    """JSON."""


def write_parquet(folder: Path, rows: Sequence[Row]) -> None:
    """Write documents as Parquet files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(rows), _ROWS_PER_FILE)):
        table = pa.Table.from_pylist(
            [asdict(row) for row in rows[start : start + _ROWS_PER_FILE]], schema=SCHEMA
        )
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(table, path, row_group_size=_ROWS_PER_GROUP)


def write_webdataset(folder: Path, rows: Sequence[Row]) -> None:
    """Write documents of one PNG picture and one text as shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(rows), _SAMPLES_PER_SHARD)):
        with tarfile.open(folder / f"shard-{number:05d}.tar", "w") as tar:
            for place, row in enumerate(rows[start : start + _SAMPLES_PER_SHARD], start):
                picture = next(image["bytes"] for image in row.images if image is not None)
                text = next(text for text in row.texts if text is not None)
                _add(tar, f"{place:08d}.png", picture or b"")
                _add(tar, f"{place:08d}.txt", text.encode())


def write_conversations(folder: Path, conversations: Sequence[dict[str, Any]]) -> None:
    """Write conversations as one file of JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(conversation, ensure_ascii=False) + "\n" for conversation in conversations)
    (folder / "part-00000.jsonl").write_text("".join(lines), encoding="utf-8")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # of time 0 and nobody, so that a seed gives the same bytes
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))

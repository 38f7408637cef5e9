"""Reading documents by number from Parquet files in the schema of OBELICS.

Schema: `images` and `texts` are lists of equal length; at each place exactly one of the two is not
null (huggingface.co/datasets/HuggingFaceM4/OBELICS). A picture is a struct of `bytes` and `path`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from stabilizer.errors import ConfigurationError, StabilizerError

HELDOUT_FOLDER: Final = "heldout"
SCHEMA: Final = pa.schema(
    [
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("texts", pa.list_(pa.string())),
        ("metadata", pa.string()),
    ]
)
_CACHED_GROUPS: Final = 64  # row groups held decoded; a small corpus fits whole


class BadDocumentError(StabilizerError):
    """A document that cannot be used. It is passed over and counted, and no more."""

    code = "bad_document"


Part: TypeAlias = str | bytes
"""A paragraph, or the file of a picture."""


@dataclass(frozen=True, slots=True)
class Document:
    """Paragraphs and pictures in the order of the page."""

    sample_id: str
    """source/file:row; the same document has the same id in every run."""
    source: str
    """Name of the source it is from."""
    parts: tuple[Part, ...]
    """Not empty."""


class ParquetSource:
    """All documents of one source, by number. Reads only the row groups that are asked for."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open every file of `folder / name`.

        Raises:
            ConfigurationError: No files, a file that is no Parquet, or another schema.
        """
        self.name = name
        self._files = sorted((folder / name).glob("*.parquet"))
        if not self._files:
            raise ConfigurationError(
                f"data.sources.{name}: {folder / name} holds no Parquet file; allowed: a folder "
                "written by `python -m trainer data make`, or with files in the schema of OBELICS"
            )
        self._groups: list[tuple[Path, int]] = []
        rows: list[int] = []
        first_rows: list[int] = []  # number of the group's first row in its file
        for path in self._files:
            counts = _row_group_counts(path, name)
            self._groups += [(path, number) for number in range(len(counts))]
            first_rows += [0, *accumulate(counts)][: len(counts)]
            rows += counts
        self._first_rows = first_rows
        self._ends = list(accumulate(rows))
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        if not len(self):
            raise ConfigurationError(f"data.sources.{name}: {folder / name} holds no document")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def document(self, index: int) -> Document:
        """Return the document with this number.

        Raises:
            BadDocumentError: Its row breaks the rules of the schema.
            IndexError: There is no such number.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)} in source {self.name}")
        group = bisect_right(self._ends, index)
        row = index - (self._ends[group - 1] if group else 0)
        table = self._group(group)
        path, _ = self._groups[group]
        sample_id = f"{self.name}/{path.name}:{self._first_rows[group] + row}"
        images = table["images"][row].as_py()
        texts = table["texts"][row].as_py()
        return Document(sample_id, self.name, _parts(sample_id, images, texts))

    def _group(self, number: int) -> pa.Table:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        path, group = self._groups[number]
        try:
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(  # no threads: readers are forked into workers
                    group, columns=["images", "texts"], use_threads=False
                )
        except (OSError, pa.ArrowException) as error:
            raise BadDocumentError(f"{path}: row group {group} cannot be read: {error}") from error
        self._cache[number] = table
        if len(self._cache) > _CACHED_GROUPS:
            self._cache.popitem(last=False)
        return table


def _row_group_counts(path: Path, source: str) -> list[int]:
    try:
        with pq.ParquetFile(path) as file:
            _check_schema(path, source, file.schema_arrow)
            metadata = file.metadata
            return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise ConfigurationError(
            f"data.sources.{source}: {path} is not a Parquet file: {error}"
        ) from error


def _check_schema(path: Path, source: str, schema: pa.Schema) -> None:
    for column in ("images", "texts"):
        expected = SCHEMA.field(column).type
        found = schema.field(column).type if column in schema.names else None
        if found is None or not _same_type(found, expected):
            raise ConfigurationError(
                f"data.sources.{source}: {path}: column {column!r} is "
                f"{found if found is not None else 'absent'}; allowed: {expected}"
            )


def _same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    """Compare types; large variants and bare bytes instead of the struct are the same to us."""
    if pa.types.is_list(expected):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
        return bool(is_list) and _same_type(found.value_type, expected.value_type)
    if pa.types.is_struct(expected):
        if pa.types.is_struct(found):
            names = {field.name for field in found}
            return "bytes" in names and _same_type(found.field("bytes").type, pa.binary())
        return _same_type(found, pa.binary())
    if pa.types.is_binary(expected):
        return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found))
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found))


def _parts(
    sample_id: str, images: Sequence[Any] | None, texts: Sequence[str | None] | None
) -> tuple[Part, ...]:
    if not images or not texts:
        raise BadDocumentError(f"{sample_id}: images and texts must be lists that are not empty")
    if len(images) != len(texts):
        raise BadDocumentError(f"{sample_id}: {len(images)} images beside {len(texts)} texts")
    parts: list[Part] = []
    for place, (image, text) in enumerate(zip(images, texts, strict=True)):
        if (image is None) == (text is None):
            raise BadDocumentError(
                f"{sample_id}: place {place} must hold either an image or a text, not "
                f"{'none' if image is None else 'both'}"
            )
        if text is not None:
            parts.append(text)
            continue
        file = image.get("bytes") if isinstance(image, dict) else image
        if not file:
            raise BadDocumentError(f"{sample_id}: the image at place {place} has no bytes")
        parts.append(file)
    return tuple(parts)

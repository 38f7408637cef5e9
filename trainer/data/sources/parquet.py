"""Reading documents by number from Parquet files in the schema of OBELICS.

Schema: `images` and `texts` are lists of equal length; at each place exactly one of the two is not
null (huggingface.co/datasets/HuggingFaceM4/OBELICS). A picture is a struct of `bytes` and `path`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.documents import BadDocumentError, Document, Part, Reason, Skip
from trainer.data.sources.files import BadShardError, Content, Shards, StoredFile

SUFFIX: Final = ".parquet"
SCHEMA: Final = pa.schema(
    [
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("texts", pa.list_(pa.string())),
        ("metadata", pa.string()),
    ]
)
_COLUMNS: Final = ["images", "texts"]
_READ_ERRORS: Final = (OSError, pa.ArrowException)  # ArrowInvalid is a ValueError too


class ParquetSource:
    """All documents of one source, by number. Reads only the row groups that it needs."""

    def __init__(
        self,
        name: str,
        files: Sequence[StoredFile],
        *,
        cache_bytes: int = 2**28,
        max_bad_in_a_row: int = 16,
    ) -> None:
        """Read the footer of every file.

        Args:
            name: Of the source.
            files: In order.
            cache_bytes: Most bytes of row groups that are kept; the newest one always is.
            max_bad_in_a_row: Consecutive unusable files that are skipped.

        Raises:
            ConfigurationError: Too many files are no Parquet or have another schema; there is no
                document.
        """
        self._name = name
        shards = Shards(name, files, _row_group_ends, max_bad_in_a_row=max_bad_in_a_row)
        self._shards = shards
        self.skipped: Sequence[Skip] = shards.skipped
        self.blocks: Sequence[int] = [
            end - start for ends in shards.indexes for start, end in pairwise([0, *ends])
        ]
        self._cache = _RowGroups(cache_bytes)

    def __len__(self) -> int:
        return len(self._shards)

    def document(self, index: int) -> Document:
        """Return the document with this number.

        Raises:
            BadDocumentError: Its row violates the schema, or cannot be read.
            IndexError: There is no such number.
        """
        shard, row = self._shards.locate(index)
        file = self._shards.files[shard]
        ends = self._shards.indexes[shard]
        group = bisect_right(ends, row)
        sample_id = f"{self._name}/{file.name}:{row}"
        table = self._cache.get(file, group, sample_id)
        place = row - (ends[group - 1] if group else 0)
        try:
            images, texts = (table[column][place].as_py() for column in _COLUMNS)
        except UnicodeDecodeError as error:
            raise BadDocumentError(sample_id, f"a text is not UTF-8: {error}") from error
        return Document(sample_id, self._name, _parts(sample_id, images, texts))

    def number(self, sample_id: str) -> int:
        """Return the number of the document with this id.

        Raises:
            KeyError: There is none.
        """
        return self._shards.number(sample_id, lambda _, row: int(row))


class _RowGroups:
    """Cache of the last row groups, limited in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tables: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tables)

    def get(self, file: StoredFile, group: int, sample_id: str) -> pa.Table:
        """Return a row group, from the cache if possible.

        Raises:
            BadDocumentError: It cannot be read.
        """
        key = (file.url, group)
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        table = _read_row_group(file, group, sample_id)
        self._tables[key] = table
        self._bytes += table.nbytes
        while self._bytes > self._max_bytes and len(self._tables) > 1:
            _, dropped = self._tables.popitem(last=False)
            self._bytes -= dropped.nbytes
        return table


def _read_row_group(file: StoredFile, group: int, sample_id: str) -> pa.Table:
    try:
        with _open(file) as opened:
            # no threads: readers are forked into workers
            return opened.read_row_group(group, columns=_COLUMNS, use_threads=False)
    except _READ_ERRORS as error:
        raise BadDocumentError(
            sample_id, f"row group {group} cannot be read: {error}", Reason.UNREADABLE
        ) from error


def _open(file: StoredFile) -> pq.ParquetFile:
    """Open a file; local ones by Arrow's own reader. Closing it closes what was opened here."""
    if file.is_local:
        return pq.ParquetFile(file.url)
    return pq.ParquetFile(pa.PythonFile(file.open(), mode="r"), pre_buffer=True)


def _row_group_ends(file: StoredFile) -> Content[list[int]]:
    """Return the cumulative row count at the end of every row group."""
    try:
        with _open(file) as opened:
            _check_schema(file.url, opened.schema_arrow)
            metadata = opened.metadata
            rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            return Content(list(accumulate(rows)), metadata.num_rows)
    except _READ_ERRORS as error:
        raise BadShardError(
            f"{file.url} is not a Parquet file: {str(error).strip()}", Reason.UNREADABLE
        ) from error


def _check_schema(url: str, schema: pa.Schema) -> None:
    for column in _COLUMNS:
        expected = SCHEMA.field(column).type
        found = schema.field(column).type if column in schema.names else None
        if found is None or not _same_type(found, expected):
            hint = ", addresses instead of pictures" if _are_addresses(column, found) else ""
            raise BadShardError(
                f"{url}: column {column!r} is {found if found is not None else 'absent'}{hint}; "
                f"allowed: {expected}",
                Reason.WRONG_SCHEMA,
            )


def _are_addresses(column: str, found: pa.DataType | None) -> bool:
    """OBELICS is published with the addresses of its pictures, which must be downloaded first."""
    return (
        column == "images"
        and found is not None
        and bool(pa.types.is_list(found))
        and bool(pa.types.is_string(found.value_type))
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
        raise BadDocumentError(sample_id, "images and texts must be lists that are not empty")
    if len(images) != len(texts):
        raise BadDocumentError(sample_id, f"{len(images)} images beside {len(texts)} texts")
    parts: list[Part] = []
    for place, (image, text) in enumerate(zip(images, texts, strict=True)):
        if (image is None) == (text is None):
            raise BadDocumentError(
                sample_id,
                f"place {place} must hold either an image or a text, not "
                f"{'none' if image is None else 'both'}",
            )
        if text is not None:
            parts.append(text)
            continue
        file = image.get("bytes") if isinstance(image, dict) else image
        if not file:
            raise BadDocumentError(sample_id, f"the image at place {place} has no bytes")
        parts.append(file)
    return tuple(parts)

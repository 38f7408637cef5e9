"""Batches: the samples of one microbatch of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from trainer.data.stream import Read


class Batch(TypedDict):
    """Shape letters: B batch_size, S sequence_length, I max_images, C colours, H, W image_size.

    Documents are numbered over the batch, row by row; without packing there is one in each row.
    """

    input_ids: Tensor  # [B, S] int64
    attention_mask: Tensor  # [B, S] int64
    labels: Tensor  # [B, S] int64
    pixel_values: Tensor  # [B, I, C, H, W] float32
    image_attention_mask: Tensor  # [B, S, I] int64
    document_ids: Tensor  # [B, S] int64; number of the token's document, -1 at padding
    source_ids: Tensor  # [B, S] int64; index of its source in source_names, -1 at padding
    source_names: list[str]  # of the sources in this batch, sorted
    positions: list[int]  # of each row in the stream
    sample_ids: list[str]  # of each document
    source: list[str]  # of each document
    rows: list[int]  # of each document in the batch
    tokens: int  # that are no padding
    passed_over: int  # unusable documents that were met on the way
    skipped: list[tuple[str, str, str, str]]  # what, source, reason and id of all passed over


def collate(reads: Sequence[Read]) -> Batch:
    """Stack samples into a batch."""
    samples = [read.sample for read in reads]
    sources = [source for sample in samples for source in sample.sources]
    names = sorted(set(sources))
    documents = _number_documents([sample.document_ids for sample in samples])
    # One more for padding: -1 picks the last.
    source_of = torch.tensor([*(names.index(source) for source in sources), -1])
    skips = [skip for read in reads for skip in read.skips]
    return Batch(
        input_ids=torch.stack([sample.input_ids for sample in samples]),
        attention_mask=torch.stack([sample.attention_mask for sample in samples]),
        labels=torch.stack([sample.labels for sample in samples]),
        pixel_values=torch.stack([sample.pixel_values for sample in samples]),
        image_attention_mask=torch.stack([sample.image_attention_mask for sample in samples]),
        document_ids=documents,
        source_ids=source_of[documents],
        source_names=names,
        positions=[sample.position for sample in samples],
        sample_ids=[name for sample in samples for name in sample.sample_ids],
        source=sources,
        rows=[row for row, sample in enumerate(samples) for _ in sample.sources],
        tokens=int(documents.ge(0).sum()),
        passed_over=sum(skip.what == "documents" for skip in skips),
        skipped=[(skip.what, skip.source, skip.reason.value, skip.sample_id) for skip in skips],
    )


def _number_documents(rows: Sequence[Tensor]) -> Tensor:
    """Number documents over the batch, given their numbers in each row; [B, S] int64."""
    numbered: list[Tensor] = []
    first = 0
    for row in rows:
        numbered.append(torch.where(row >= 0, row + first, -1))
        first += int(row.max()) + 1
    return torch.stack(numbered)

"""Batches: the samples of one microbatch of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from trainer.data.stream import Read


class Batch(TypedDict):
    """Shape letters: B batch_size, S sequence_length, I max_images, C colours, H, W image_size."""

    input_ids: Tensor  # [B, S] int64
    attention_mask: Tensor  # [B, S] int64
    labels: Tensor  # [B, S] int64
    pixel_values: Tensor  # [B, I, C, H, W] float32
    image_attention_mask: Tensor  # [B, S, I] int64
    positions: list[int]  # of each sample in the stream
    sample_ids: list[str]  # of each document
    source: list[str]  # of each document
    passed_over: int  # unusable documents that were met on the way


def collate(reads: Sequence[Read]) -> Batch:
    """Stack samples into a batch."""
    samples = [read.sample for read in reads]
    return Batch(
        input_ids=torch.stack([sample.input_ids for sample in samples]),
        attention_mask=torch.stack([sample.attention_mask for sample in samples]),
        labels=torch.stack([sample.labels for sample in samples]),
        pixel_values=torch.stack([sample.pixel_values for sample in samples]),
        image_attention_mask=torch.stack([sample.image_attention_mask for sample in samples]),
        positions=[sample.position for sample in samples],
        sample_ids=[sample.sample_id for sample in samples],
        source=[sample.source for sample in samples],
        passed_over=sum(read.passed_over for read in reads),
    )

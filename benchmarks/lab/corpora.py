"""Data of the laboratory: synthetic, seeded, and addressed by position in a stream.

Every source is a pool of samples. A position of the stream names one sample of one source, whatever
the job did before: a job that reads a position again gets the same sample, and a job that skips it
never does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

import numpy as np
import torch
from torch import Tensor

SOURCES: Final = ("web", "books", "code")
"""The first two are mixed in every run; the last one is kept for a change of the data."""
POOL: Final = 6_000
"""Samples in a source."""
HELD_OUT: Final = 32
"""Samples for the held-out loss: half of each of the first two sources, at the end of the pool."""

VOCABULARY: Final = 64
TEXT_LENGTH: Final = 24
CLASSES: Final = 12
IMAGE_SIZE: Final = 16
_ZIPF: Final = 1.1
_SHARPNESS: Final = 4.0
"""Of the languages' transitions; the higher, the more there is to learn in few steps."""
_TOPICS: Final = 2


Pools = Mapping[str, Tensor]
"""Fields by name: the first dimension is the source, the second the sample."""


def _stacked(pools: Sequence[Mapping[str, np.ndarray]]) -> Pools:
    return {name: torch.from_numpy(np.stack([p[name] for p in pools])) for name in pools[0]}


def _language(generator: np.random.Generator, sharpness: float, vocabulary: int) -> np.ndarray:
    """Return a table of transition probabilities with Zipf's distribution of tokens."""
    ranks = generator.permutation(vocabulary) + 1.0
    logits = -_ZIPF * np.log(ranks) + sharpness * generator.standard_normal(
        (vocabulary, vocabulary)
    )
    table = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(np.cumsum(table / table.sum(axis=1, keepdims=True), axis=1))


def _sentences(generator: np.random.Generator, table: np.ndarray, length: int) -> np.ndarray:
    """Walk the table; a third of the samples repeat their first half."""
    tokens = np.zeros((POOL, length), np.int64)
    tokens[:, 0] = generator.integers(len(table), size=POOL)
    for place in range(1, length):
        draws = generator.random((POOL, 1))
        tokens[:, place] = (
            (table[tokens[:, place - 1]] < draws).sum(axis=1).clip(max=len(table) - 1)
        )
    repeated = generator.random(POOL) < 1 / 3
    half = length // 2
    tokens[repeated, half : 2 * half] = tokens[repeated, :half]
    return tokens


@cache
def text_pools(seed: int) -> Pools:
    """Return sources of text: `tokens` [S, N, TEXT_LENGTH]."""
    pools = []
    for number in range(len(SOURCES)):
        generator = np.random.default_rng([seed, number, 1])
        table = _language(generator, _SHARPNESS + 0.5 * number, VOCABULARY)
        tokens = _sentences(generator, table, TEXT_LENGTH)
        pools.append({"tokens": tokens})
    return _stacked(pools)


@cache
def pair_pools(seed: int) -> Pools:
    """Return sources of pairs: `source` and `target`, [S, N, TEXT_LENGTH // 2] each.

    The target is text in one of several languages; the tokens of the source say in which.
    """
    pools = []
    for number in range(len(SOURCES)):
        generator = np.random.default_rng([seed, number, 2])
        topics = generator.integers(_TOPICS, size=POOL)
        band = VOCABULARY // _TOPICS
        tokens = topics[:, None] * band + generator.integers(band, size=(POOL, TEXT_LENGTH // 2))
        strange = generator.random(tokens.shape) < 0.2 + 0.2 * number
        tokens[strange] = generator.integers(VOCABULARY, size=int(strange.sum()))
        target = np.zeros_like(tokens)
        for topic in range(_TOPICS):
            tables = np.random.default_rng([seed, topic, 3])
            own = topics == topic
            sentences = _sentences(
                generator, _language(tables, _SHARPNESS, VOCABULARY), TEXT_LENGTH // 2
            )
            target[own] = sentences[own]
        pools.append({"source": tokens, "target": target})
    return _stacked(pools)


def _images(generator: np.random.Generator, classes: np.ndarray, noise: float) -> np.ndarray:
    """Draw [N, 3, IMAGE_SIZE, IMAGE_SIZE]: a pattern for each class, shifted, under noise."""
    axis = np.arange(IMAGE_SIZE)
    waves = np.random.default_rng(7).uniform(0.3, 1.6, (CLASSES, 3, 2))
    shifts = generator.integers(2, size=(len(classes), 2))
    x = waves[classes, :, :1] * (axis + shifts[:, None, :1])
    y = waves[classes, :, 1:] * (axis + shifts[:, None, 1:])
    images = np.sin(x[:, :, :, None]) + np.cos(y[:, :, None, :])
    return (images + noise * generator.standard_normal(images.shape)).astype(np.float32)


@cache
def image_pools(seed: int) -> Pools:
    """Return labelled pictures by source: `images` and `labels`; a quarter of them is wrong."""
    pools = []
    for number in range(len(SOURCES)):
        generator = np.random.default_rng([seed, number, 4])
        labels = generator.integers(CLASSES, size=POOL)
        images = _images(generator, labels, 1.0 + 0.5 * number)
        wrong = generator.random(POOL) < 0.25
        labels = np.where(wrong, generator.integers(CLASSES, size=POOL), labels)
        pools.append({"images": images, "labels": labels})
    return _stacked(pools)


@cache
def caption_pools(seed: int) -> Pools:
    """Return sources of pictures with text: `images`, `tokens`; some tokens name the class."""
    pools = []
    for number in range(len(SOURCES)):
        generator = np.random.default_rng([seed, number, 5])
        labels = generator.integers(CLASSES, size=POOL)
        images = _images(generator, labels, 0.7 + 0.3 * number)
        table = _language(generator, _SHARPNESS + 0.5 * number, VOCABULARY)
        tokens = _sentences(generator, table, TEXT_LENGTH // 2)
        for place in range(1, TEXT_LENGTH // 2, 4):  # the picture decides every fourth token
            tokens[:, place] = (5 * labels + place) % VOCABULARY
        pools.append({"images": images, "tokens": tokens})
    return _stacked(pools)

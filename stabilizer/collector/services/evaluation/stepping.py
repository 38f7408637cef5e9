"""The order in which the rules see the frames of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from stabilizer.protocol.frames import FrameBlock

Place = tuple[FrameBlock, int]
"""A block and the index of a frame in it."""


def frames_by_step(blocks: Sequence[FrameBlock]) -> Iterator[tuple[int, list[Place]]]:
    """Give the frames of all blocks step by step, within a step in the order of the blocks."""
    places = [
        (step, index, block) for block in blocks for index, step in enumerate(block.steps.tolist())
    ]
    places.sort(key=itemgetter(0))  # stable: blocks stay in their order
    for step, group in groupby(places, key=itemgetter(0)):
        yield step, [(block, index) for _, index, block in group]


def is_new(seen: dict[str, int], catalog: str, step: int) -> bool:
    """Tell whether the rules may see a frame: they never go back.

    A second catalog may come late for the present step, but no catalog for a step gone by, and none
    twice.
    """
    return step > seen.get(catalog, -1) and step >= max(seen.values(), default=-1)

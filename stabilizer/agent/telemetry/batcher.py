"""Turns what was handed over into numbered, complete batches.

All frames of one put travel in one batch, and a batch belongs to one attempt. The sequence counts
the batches of an attempt; a batch gets its number once, here, and keeps it however often it is
sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from stabilizer.agent.telemetry.attempts import (
    UNREGISTERED_BASE,
    Start,
    move_snapshots,
    move_start,
)
from stabilizer.agent.telemetry.buffer import Context, Entry, FrameSource
from stabilizer.agent.telemetry.spool import Record, RecordKind
from stabilizer.errors import TelemetryError
from stabilizer.protocol.batches import AgentHealth, BatchHeader, Marker
from stabilizer.protocol.commands import CommandResult
from stabilizer.protocol.frames import FrameBlock, encode_batch
from stabilizer.protocol.series import Catalog

MAX_MARKERS = 1000
"""Markers in one batch."""

Blocks = Sequence[tuple[Catalog, FrameBlock]]


@dataclass(slots=True)
class _OpenBatch:
    """A batch that still takes frames of one attempt."""

    attempt: int
    start: Start | None = None
    markers: list[Marker] = field(default_factory=list)
    blocks: dict[str, list[FrameBlock]] = field(default_factory=dict)
    num_frames: int = 0
    num_bytes: int = 0

    def takes(self, blocks: Blocks) -> bool:
        """Tell whether the steps go on upwards; within a batch they must."""
        for catalog, block in blocks:
            held = self.blocks.get(catalog.id)
            if held and block.steps[0] < held[-1].steps[-1]:
                return False
        return True

    def add(self, blocks: Blocks) -> None:
        """Append the frames of one put."""
        for catalog, block in blocks:
            self.blocks.setdefault(catalog.id, []).append(block)
            self.num_bytes += block.values.nbytes
        self.num_frames += 1


class Batcher:
    """Builds records. Used by the sender thread alone.

    Args:
        context: Shared with training.
    """

    def __init__(self, context: Context) -> None:
        self._buffer = context.buffer
        self._book = context.book
        self._counters = context.counters
        self._settings = context.settings
        self._open: _OpenBatch | None = None
        self._attempt = 0
        self._sequence = 0
        self._health = AgentHealth()
        self.last_step = 0
        """Newest step seen in the frames of the present attempt."""
        self.catalogs: dict[str, Catalog] = {}
        """Every catalog that a frame has named, by id."""
        self.starts: dict[int, Start] = {}
        """Start of every attempt after the first, by local number."""

    def add(self, entry: Entry, num_steps: int) -> list[Record]:
        """Take one entry; return the records that it completes.

        Args:
            entry: From the buffer, in order.
            num_steps: Puts of frames that fill a batch.

        Raises:
            TelemetryError: The frames do not fit their catalog; they are counted as dropped. The
                same holds for whatever else `FrameSource.blocks` raises.
        """
        content = entry.content
        if isinstance(content, CommandResult):
            payload = content.model_dump_json().encode()
            return [*self.flush(), Record(RecordKind.RESULT, self._book.base, 0, payload)]
        done = self._turn_to(entry.attempt)
        if isinstance(content, Start):
            self.starts[entry.attempt] = content
            self._batch(entry.attempt).start = content
        elif isinstance(content, Marker):
            batch = self._batch(entry.attempt)
            batch.markers.append(content)
            if len(batch.markers) >= MAX_MARKERS:
                done += self.flush()
        else:
            done += self._add_frames(content, entry.attempt, num_steps)
        return done

    def flush(self) -> list[Record]:
        """Complete the open batch; one that only carries a changed inventory counts as open."""
        batch, self._open = self._open, None
        if batch is None and self._buffer.has_new_snapshots:
            batch = _OpenBatch(max(1, self._attempt))
        if batch is None:
            return []
        with self._counted_if_lost(batch.num_frames):
            return [self._close(batch)]

    def _turn_to(self, attempt: int) -> list[Record]:
        if self._open is not None and self._open.attempt != attempt:
            return self.flush()
        return []

    def _batch(self, attempt: int) -> _OpenBatch:
        if self._open is None:
            self._open = _OpenBatch(attempt)
        return self._open

    def _add_frames(self, frames: FrameSource, attempt: int, num_steps: int) -> list[Record]:
        with self._counted_if_lost(1):
            blocks = [pair for pair in frames.blocks() if len(pair[1])]
            for catalog, block in blocks:
                _check(catalog, block)
        if not blocks:
            return []
        done = []
        if self._open is not None and not self._open.takes(blocks):
            done += self.flush()
        batch = self._batch(attempt)
        batch.add(blocks)
        for catalog, block in blocks:
            self.catalogs.setdefault(catalog.id, catalog)
            self.last_step = int(block.steps[-1])
        if batch.num_frames >= num_steps or batch.num_bytes >= self._settings.batch_bytes:
            done += self.flush()
        return done

    def _close(self, batch: _OpenBatch) -> Record:
        if batch.attempt != self._attempt:
            self._attempt, self._sequence = batch.attempt, 0
        base = self._book.base
        start = None
        if batch.start is not None:
            start = move_start(batch.start.start, batch.start.base, base)
        health = self._counters.health
        header = BatchHeader(
            attempt=base + batch.attempt - 1,
            sequence=self._sequence,
            attempt_start=start,
            markers=tuple(batch.markers),
            snapshots=move_snapshots(self._buffer.take_snapshots(), base - UNREGISTERED_BASE),
            health=None if health == self._health else health,
        )
        self._sequence += 1
        self._health = health
        payload = encode_batch(header, [_merge(blocks) for blocks in batch.blocks.values()])
        kind = RecordKind.BATCH if start is None else RecordKind.FIRST_BATCH
        return Record(kind, base, batch.num_frames, payload)

    @contextmanager
    def _counted_if_lost(self, num_frames: int) -> Iterator[None]:
        is_done = False
        try:
            yield
            is_done = True
        finally:
            if not is_done:
                self._counters.add(dropped=num_frames)


def _check(catalog: Catalog, block: FrameBlock) -> None:
    expected = (len(block.steps), len(catalog))
    masks = expected if block.present is None else block.present.shape
    if block.values.shape != expected or masks != expected or len(block.times) != expected[0]:
        raise TelemetryError(
            f"frames of catalog {catalog.id} have shape {block.values.shape}; allowed: {expected}",
            code="malformed_frames",
        )


def _merge(blocks: Sequence[FrameBlock]) -> FrameBlock:
    """Put the frames of one catalog one behind the other."""
    if len(blocks) == 1:
        return blocks[0]
    present = None
    if any(block.present is not None for block in blocks):
        masks = (
            np.ones(block.values.shape, np.bool_) if block.present is None else block.present
            for block in blocks
        )
        present = np.concatenate(list(masks))
    return FrameBlock(
        catalog=blocks[0].catalog,
        steps=np.concatenate([block.steps for block in blocks]),
        times=np.concatenate([block.times for block in blocks]),
        values=np.concatenate([block.values for block in blocks]),
        present=present,
    )

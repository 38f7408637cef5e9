"""Ingest of batches: check, store, evaluate and answer in one transaction."""

from __future__ import annotations

from collections.abc import Sequence

from stabilizer.collector.services.commands.answers import build_answer
from stabilizer.collector.services.frames.json_batch import read_json_batch
from stabilizer.collector.services.frames.validation import (
    check_blocks,
    check_catalogs,
    check_header,
)
from stabilizer.collector.services.runs.attempts import (
    find_attempt,
    is_newest,
    number_of,
    number_snapshots,
    receive_attempt,
    unknown_attempt,
)
from stabilizer.collector.services.runs.presence import mark_alive
from stabilizer.collector.services.unit_of_work import RunTransaction, UnitOfWork
from stabilizer.collector.storage.repositories import StoredBatch
from stabilizer.protocol.batches import BatchAnswer, BatchHeader, JsonBatch
from stabilizer.protocol.frames import Batch, FrameBlock
from stabilizer.protocol.series import Catalog


class IngestService:
    """Takes batches. A repeated (attempt, sequence) is a duplicate and changes nothing.

    The rules evaluate batches of the newest attempt as they arrive. They never go back in steps:
    late frames are stored and shown, but not evaluated. Batches of earlier attempts (from a spool)
    are only stored.
    """

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    def accept(self, run_id: str, batch: Batch) -> BatchAnswer:
        """Take a batch.

        Raises:
            NotFoundError: There is no such run.
            ConflictError: Codes `unknown_catalog`, `unknown_attempt`.
            InvalidInputError: Codes `catalog_mismatch`, `step_out_of_order`, `malformed_batch`.
        """
        return self._accept(run_id, batch, ())

    def accept_json(self, run_id: str, message: JsonBatch) -> BatchAnswer:
        """Take a batch in JSON; build its catalogs from the names of the series.

        Raises:
            NotFoundError: There is no such run.
            ConflictError: Code `unknown_attempt`.
            InvalidInputError: Codes `invalid_input`, `value_out_of_range`, `step_out_of_order`,
                `too_many_catalogs`.
        """
        read = read_json_batch(message, self._uow.clock.now())
        return self._accept(run_id, read.batch, read.catalogs)

    def _accept(self, run_id: str, batch: Batch, catalogs: Sequence[Catalog]) -> BatchAnswer:
        header = batch.header
        with self._uow.run(run_id) as tx:
            number = number_of(tx, header)
            if tx.repos.frames.has_batch(run_id, number, header.sequence):
                if is_newest(tx, number):
                    mark_alive(tx)
                return build_answer(tx, number, duplicate=True)
            check_header(header)
            new = self._check(tx, header, batch.blocks, catalogs)
            if new:
                tx.repos.catalogs.add(run_id, new, tx.now)
                tx.judge.add_catalogs(tx, new)
                tx.is_visible = True
            number = self._store(tx, header, batch.blocks)
            return build_answer(tx, number)

    def _check(
        self,
        tx: RunTransaction,
        header: BatchHeader,
        blocks: Sequence[FrameBlock],
        catalogs: Sequence[Catalog],
    ) -> list[Catalog]:
        """Check everything before anything is stored; return the new catalogs."""
        widths = tx.repos.catalogs.of_run(tx.run.id)
        new = [catalog for catalog in catalogs if catalog.id not in widths]
        check_catalogs(new, len(widths))
        begun = find_attempt(tx, header) or header.attempt_start
        if begun is None:
            raise unknown_attempt(tx, header)
        widths |= {catalog.id: len(catalog) for catalog in new}
        check_blocks(blocks, widths, begun.from_step)
        return new

    def _store(self, tx: RunTransaction, header: BatchHeader, blocks: Sequence[FrameBlock]) -> int:
        attempt = receive_attempt(tx, header)
        is_current = attempt.number == tx.run.attempt
        in_order = header.sequence > attempt.accepted_sequence
        attempt.accepted_sequence = max(attempt.accepted_sequence, header.sequence)
        attempt.num_batches += 1
        attempt.last_step = max([attempt.last_step, *(int(b.steps[-1]) for b in blocks if len(b))])
        tx.repos.attempts.add_markers(tx.run.id, attempt.number, header.markers, tx.now)
        if header.health is not None:
            tx.run.agent_health = header.health.model_dump()
        if is_current:
            mark_alive(tx)
            tx.run.step = max(tx.run.step, attempt.last_step)
            if any(len(block) for block in blocks):
                tx.run.stepped_at = tx.now
            if in_order and header.snapshots is not None:
                snapshots = number_snapshots(tx, header.snapshots, attempt.number)
                tx.repos.attempts.replace_snapshots(tx.run.id, snapshots)
                tx.judge.set_snapshots(tx, snapshots)
            tx.judge.feed(tx, blocks, header.markers if in_order else ())
        else:
            tx.judge.pass_by(tx)
        tx.has_frames = any(len(block) for block in blocks)
        if header.markers or header.snapshots is not None:
            tx.is_visible = True
        tx.repos.frames.add_batch(
            StoredBatch(
                run_id=tx.run.id,
                attempt=attempt.number,
                sequence=header.sequence,
                version=tx.run.version,
                evaluated=is_current,
                received_at=tx.now,
            ),
            blocks,
        )
        return attempt.number

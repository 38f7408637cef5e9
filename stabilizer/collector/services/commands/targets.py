"""What a command by hand means now: whether it can be given, and where a rollback goes to."""

from __future__ import annotations

from stabilizer.collector.services.evaluation.judge import Judge
from stabilizer.collector.services.runs.presence import ENDED
from stabilizer.collector.services.unit_of_work import RunTransaction
from stabilizer.errors import ConflictError
from stabilizer.protocol.batches import SnapshotInfo
from stabilizer.protocol.commands import CommandParameters, RollbackParameters, SnapshotTarget
from stabilizer.protocol.queries import CommandRequest, RollbackRequest


def check_open(tx: RunTransaction, attempt: int | None) -> None:
    """Check that a run takes commands.

    Args:
        tx: The run.
        attempt: The attempt that the command is meant for; None for the newest.

    Raises:
        ConflictError: Codes `past_attempt`, `run_ended`.
    """
    if attempt is not None and attempt != tx.run.attempt:
        raise ConflictError(
            f"the run is in attempt {tx.run.attempt}, not in {attempt}",
            code="past_attempt",
        )
    if tx.run.state in ENDED:
        raise ConflictError(f"the run has {tx.run.state}", code="run_ended")


def resolve(tx: RunTransaction, judge: Judge, asked: CommandRequest) -> CommandParameters:
    """Turn what a person asked for into what a job is told.

    Raises:
        ConflictError: As `find_target`.
    """
    if not isinstance(asked, RollbackRequest):
        return asked
    return RollbackParameters(
        target=find_target(tx, judge, asked),
        skip_steps=asked.skip_steps,
        reduce_lr=asked.reduce_lr,
    )


def held_snapshot(tx: RunTransaction, snapshot_id: str) -> SnapshotInfo:
    """Return a snapshot that the job holds and can be restored from.

    Raises:
        ConflictError: Codes `unknown_snapshot`, `snapshot_not_finite`.
    """
    return _named(tx.repos.attempts.snapshots(tx.run.id), snapshot_id)


def find_target(tx: RunTransaction, judge: Judge, asked: RollbackRequest) -> SnapshotTarget:
    """Name the snapshot in full.

    A person may name any finite snapshot; chosen by step, it is a healthy one.

    Raises:
        ConflictError: Codes `unknown_snapshot`, `snapshot_not_finite`, `no_healthy_snapshot`.
    """
    held = tx.repos.attempts.snapshots(tx.run.id)
    if asked.snapshot_id is not None:
        return _target(_named(held, asked.snapshot_id))
    healthy = set(judge.healthy_snapshots(tx))
    fit = [
        snapshot
        for snapshot in held
        if snapshot.finite
        and snapshot.id in healthy
        and (asked.to_step is None or snapshot.step <= asked.to_step)
    ]
    if not fit:
        bound = "" if asked.to_step is None else f" at or before step {asked.to_step}"
        raise ConflictError(
            f"the job holds no healthy snapshot{bound}; it holds {_listed(held)}",
            code="no_healthy_snapshot",
        )
    return _target(max(fit, key=lambda snapshot: (snapshot.step, snapshot.attempt)))


def _named(held: list[SnapshotInfo], snapshot_id: str) -> SnapshotInfo:
    for snapshot in held:
        if snapshot.id == snapshot_id:
            if not snapshot.finite:
                raise ConflictError(
                    f"snapshot {snapshot_id!r} has values that are not finite",
                    code="snapshot_not_finite",
                )
            return snapshot
    raise ConflictError(
        f"the job holds no snapshot {snapshot_id!r}; it holds {_listed(held)}",
        code="unknown_snapshot",
    )


def _listed(held: list[SnapshotInfo]) -> str:
    return ", ".join(f"{snapshot.id} (step {snapshot.step})" for snapshot in held) or "none"


def _target(snapshot: SnapshotInfo) -> SnapshotTarget:
    return SnapshotTarget(snapshot_id=snapshot.id, attempt=snapshot.attempt, step=snapshot.step)

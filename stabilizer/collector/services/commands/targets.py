"""Check a manual command against the run, and resolve the target of a rollback."""

from __future__ import annotations

from stabilizer.collector.services.runs.presence import ENDED
from stabilizer.collector.storage.models import RunRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.errors import ConflictError
from stabilizer.protocol.batches import SnapshotInfo
from stabilizer.protocol.commands import CommandParameters, RollbackParameters, SnapshotTarget
from stabilizer.protocol.queries import CommandRequest, RollbackRequest


def check_open(run: RunRow, attempt: int | None) -> None:
    """Check that a run accepts commands.

    Args:
        run: The run.
        attempt: The attempt that the command is for; None for the newest.

    Raises:
        ConflictError: Codes `past_attempt`, `run_ended`.
    """
    if attempt is not None and attempt != run.attempt:
        raise ConflictError(
            f"the run is in attempt {run.attempt}, not in {attempt}",
            code="past_attempt",
        )
    if run.state in ENDED:
        raise ConflictError(f"the run has {run.state}", code="run_ended")


def resolve(repos: Repositories, run: RunRow, request: CommandRequest) -> CommandParameters:
    """Convert an operator's request to the parameters that the job receives.

    Raises:
        ConflictError: As `find_target`.
    """
    if not isinstance(request, RollbackRequest):
        return request
    return RollbackParameters(
        target=find_target(repos, run, request),
        skip_steps=request.skip_steps,
        reduce_lr=request.reduce_lr,
    )


def held_snapshot(repos: Repositories, run: RunRow, snapshot_id: str) -> SnapshotInfo:
    """Return a snapshot that the job holds and can restore.

    Raises:
        ConflictError: Codes `unknown_snapshot`, `snapshot_not_finite`.
    """
    return _named(repos.attempts.snapshots(run.id), snapshot_id)


def find_target(repos: Repositories, run: RunRow, request: RollbackRequest) -> SnapshotTarget:
    """Find the snapshot of a request: any finite one by id, or a healthy one by step.

    Raises:
        ConflictError: Codes `unknown_snapshot`, `snapshot_not_finite`, `no_healthy_snapshot`.
    """
    held = repos.attempts.snapshots(run.id)
    if request.snapshot_id is not None:
        return _target(_named(held, request.snapshot_id))
    healthy = repos.rules.healthy_snapshots(run.id)
    fit = [
        snapshot
        for snapshot in held
        if snapshot.finite
        and snapshot.id in healthy
        and (request.to_step is None or snapshot.step <= request.to_step)
    ]
    if not fit:
        bound = "" if request.to_step is None else f" at or before step {request.to_step}"
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
                    f"snapshot {snapshot_id!r} has non-finite values",
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

"""The snapshots of the run's current branch, and which of them are healthy.

A snapshot is healthy if the job found it finite and no alert was active at it or within the next
`healthy_after` steps of its branch. A pending alert postpones the decision; it counts only if it
fires. An alert that is no divergence counts for its first `healthy_after` steps: one that has been
there for long says nothing of this snapshot. A healthy snapshot stays healthy until a rollback
leaves its branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from stabilizer.protocol.batches import SnapshotInfo
from stabilizer.protocol.decisions import AlertState, Severity
from stabilizer.rules.alerting import ActiveAlert
from stabilizer.rules.outcome import AlertChange

MAX_SPANS: Final = 512


@dataclass(slots=True)
class Segment:
    """A part of the current branch: an attempt and its first step."""

    attempt: int
    from_step: int


@dataclass(slots=True)
class Lineage:
    """The current branch of a run, from its first attempt to the newest."""

    healthy_after: int
    segments: list[Segment] = field(default_factory=list)
    snapshots: list[SnapshotInfo] = field(default_factory=list)
    healthy: list[str] = field(default_factory=list)
    """Ids of snapshots found healthy, oldest first."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    """First and last step of resolved alerts that fired, in the current branch."""

    def begin_attempt(self, number: int, from_step: int) -> None:
        """Continue from a step; what came after it is abandoned."""
        self.segments = [part for part in self.segments if part.from_step <= from_step]
        self.segments.append(Segment(number, from_step))
        self.spans = [(a, min(b, from_step)) for a, b in self.spans if a <= from_step]
        self._keep_known()

    def set_snapshots(self, snapshots: Sequence[SnapshotInfo]) -> None:
        """Replace the job's inventory."""
        self.snapshots = sorted(snapshots, key=lambda info: (info.step, info.attempt, info.id))
        self._keep_known()

    def _keep_known(self) -> None:
        present = {info.id for info in self.snapshots if self._is_in_branch(info)}
        self.healthy = [name for name in self.healthy if name in present]

    def _is_in_branch(self, info: SnapshotInfo) -> bool:
        for index, part in enumerate(self.segments):
            if part.attempt == info.attempt:
                is_last = index + 1 == len(self.segments)
                within = is_last or info.step <= self.segments[index + 1].from_step
                return within and info.step >= part.from_step
        return False

    def alert_changed(self, change: AlertChange) -> None:
        """Record the steps of an alert that fired and is now resolved."""
        if change.state is AlertState.RESOLVED:
            self.spans.append(self._span(change.key.pending_step, change.step, change.severity))
            del self.spans[:-MAX_SPANS]

    def _span(self, first: int, last: int, severity: Severity) -> tuple[int, int]:
        """Return the steps for which an alert counts against snapshots."""
        if severity is Severity.DIVERGENCE:
            return first, last
        return first, min(last, first + self.healthy_after)

    def judge(self, step: int, active: Iterable[ActiveAlert]) -> None:
        """Find the snapshots that have become healthy by a step.

        Args:
            step: Completed optimizer steps of the current branch.
            active: Alerts that are pending or firing now.
        """
        due = [
            info
            for info in self.snapshots
            if info.finite
            and info.id not in self.healthy
            and info.step + self.healthy_after <= step
            and self._is_in_branch(info)
        ]
        if not due:
            return
        own = (self._span(alert.key.pending_step, step, alert.severity) for alert in active)
        spans = [*self.spans, *own]
        for info in due:
            end = info.step + self.healthy_after
            if not any(first <= end and last >= info.step for first, last in spans):
                self.healthy.append(info.id)

    def target(self, before: int) -> SnapshotInfo | None:
        """Pick the snapshot to roll back to.

        Returns:
            The newest healthy one at or before a step; if there is none, the oldest healthy one;
            None if none is healthy.
        """
        healthy = [info for info in self.snapshots if info.id in self.healthy]
        deep = [info for info in healthy if info.step <= before]
        if deep:
            return deep[-1]
        return healthy[0] if healthy else None

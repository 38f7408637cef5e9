"""Which snapshots lie in the present branch of the run, and which of them are healthy.

A snapshot is healthy when the job found it finite and no alert was active at it or within the next
`healthy_after` steps of its branch. While an alert is pending there is no verdict: it counts only
if it comes to fire. Once healthy a snapshot stays so, until a rollback leaves its branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from stabilizer.protocol.batches import SnapshotInfo
from stabilizer.protocol.decisions import AlertState
from stabilizer.rules.alerting import ActiveAlert
from stabilizer.rules.outcome import AlertChange

MAX_SPANS: Final = 512


@dataclass(slots=True)
class Segment:
    """A stretch of the present branch: an attempt, and the step from which it goes on."""

    attempt: int
    from_step: int


@dataclass(slots=True)
class Lineage:
    """The present branch of a run, from its first attempt to the one under way."""

    healthy_after: int
    segments: list[Segment] = field(default_factory=list)
    snapshots: list[SnapshotInfo] = field(default_factory=list)
    healthy: list[str] = field(default_factory=list)
    """Ids of snapshots found healthy, oldest first."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    """First and last step of alerts that fired and are over, in the present branch."""

    def begin_attempt(self, number: int, from_step: int) -> None:
        """Go on from a step; what came after it is abandoned."""
        self.segments = [part for part in self.segments if part.from_step <= from_step]
        self.segments.append(Segment(number, from_step))
        self.spans = [(a, min(b, from_step)) for a, b in self.spans if a <= from_step]
        self._keep_known()

    def set_snapshots(self, snapshots: Sequence[SnapshotInfo]) -> None:
        """Take over the job's whole inventory."""
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
        """Note the stretch of an alert that fired and is now over."""
        if change.state is AlertState.RESOLVED:
            self.spans.append((change.key.pending_step, change.step))
            del self.spans[:-MAX_SPANS]

    def judge(self, step: int, active: Iterable[ActiveAlert]) -> None:
        """Find out which snapshots have become healthy by a step.

        Args:
            step: Completed optimizer steps of the present branch.
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
        spans = [*self.spans, *((alert.key.pending_step, step) for alert in active)]
        for info in due:
            end = info.step + self.healthy_after
            if not any(first <= end and last >= info.step for first, last in spans):
                self.healthy.append(info.id)

    def target(self, before: int) -> SnapshotInfo | None:
        """Pick the snapshot to go back to.

        Returns:
            The newest healthy one at or before a step; if none lies so deep, the oldest healthy
            one; None if none is healthy.
        """
        healthy = [info for info in self.snapshots if info.id in self.healthy]
        deep = [info for info in healthy if info.step <= before]
        if deep:
            return deep[-1]
        return healthy[0] if healthy else None

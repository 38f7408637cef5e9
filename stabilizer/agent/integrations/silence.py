"""Telemetry that says nothing: of ranks other than 0, and before training begins."""

from __future__ import annotations

from collections.abc import Sequence

from stabilizer.agent.probes.record import PendingFrames
from stabilizer.protocol.batches import AttemptStart, Marker, SamplingPlan, SnapshotInfo
from stabilizer.protocol.commands import CommandResult
from stabilizer.protocol.runs import RunState


class Silence:
    """Counts attempts as they begin, and keeps everything else to itself."""

    plan = SamplingPlan()

    def __init__(self) -> None:
        self.attempt = 1

    def start(self) -> None:
        """Nothing begins."""

    def put(self, frames: PendingFrames) -> None:
        """Nobody hears of it."""

    def marker(self, marker: Marker) -> None:
        """Nobody hears of it."""

    def set_snapshots(self, infos: Sequence[SnapshotInfo]) -> None:
        """Nobody hears of it."""

    def begin_attempt(self, start: AttemptStart) -> int:
        """Count it; the leader knows the collector's number."""
        del start
        self.attempt += 1
        return self.attempt

    def result(self, result: CommandResult) -> None:
        """The leader tells it."""

    def set_state(self, state: RunState, step: int, message: str = "") -> None:
        """The leader tells it."""

    def close(self, state: RunState, timeout_seconds: float = 5.0) -> None:
        """Nothing ends."""

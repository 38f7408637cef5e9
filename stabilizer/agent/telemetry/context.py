"""What the training thread's side and the sender's side share."""

from __future__ import annotations

from dataclasses import dataclass

from stabilizer.agent.telemetry.attempts import AttemptBook
from stabilizer.agent.telemetry.buffer import Buffer
from stabilizer.agent.telemetry.counters import Counters
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One reporter's shared objects."""

    settings: ReporterSettings
    clock: Clock
    buffer: Buffer
    book: AttemptBook
    counters: Counters

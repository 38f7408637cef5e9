"""Options of the demo, and its three arms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stabilizer.errors import ConfigurationError
from stabilizer.protocol.decisions import Mode

_MIN_STEPS: Final = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One training job of the story."""

    name: str
    """Name in the report and in the table."""
    mode: Mode
    """How far the policy may go by itself."""
    disturbed: bool
    """Whether both disturbances happen to it."""
    title: str
    """Shown to the user."""


UNDISTURBED: Final = Arm(
    name="undisturbed", mode=Mode.AUTO, disturbed=False, title="undisturbed, watched"
)
UNPROTECTED: Final = Arm(
    name="unprotected", mode=Mode.OBSERVE, disturbed=True, title="disturbed, only observed"
)
PROTECTED: Final = Arm(
    name="protected", mode=Mode.AUTO, disturbed=True, title="disturbed, protected"
)
ARMS: Final = (UNDISTURBED, UNPROTECTED, PROTECTED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Disturbances:
    """When the two disturbances happen, in optimizer steps of a run without rollbacks."""

    bad_from: int
    bad_steps: int
    restart_at: int
    restart_factor: float = 30.0
    """How many times too high the restarted schedule is."""

    @property
    def bad_until(self) -> int:
        """First step after the bad documents."""
        return self.bad_from + self.bad_steps


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The command line of the demo."""

    out: Path
    """Folder for the database, the data, the logs and the checkpoints of this demo."""
    seed: int = 0
    """Seed of data, weights and disturbances of all arms."""
    steps: int = 500
    """Optimizer steps of each arm."""
    preset: str = "idefics-tiny"
    """Configuration preset of the trainer."""
    report: Path | None = None
    """Where the JSON report goes; None writes it to `out`."""
    exit_when_done: bool = False
    """Stop the collector when the demo is over, instead of leaving it running."""
    timeout_seconds: float = 600.0
    """After this time the demo stops and reports how far it got."""
    final_steps: int = 100
    """The final loss is the mean over this many last steps."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigurationError(f"seed: {self.seed} cannot be used; allowed: 0 to 2**32 - 1")
        if self.steps < _MIN_STEPS:
            raise ConfigurationError(
                f"steps: {self.steps} cannot be used; allowed: at least {_MIN_STEPS}, since the "
                "demo needs room for two disturbances and for their recovery"
            )

    @property
    def disturbances(self) -> Disturbances:
        """The bad documents come at 30 % of the run, the restarted schedule at 55 %."""
        return Disturbances(
            bad_from=round(0.30 * self.steps),
            bad_steps=4,
            restart_at=round(0.55 * self.steps),
        )

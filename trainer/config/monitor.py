"""Who watches the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from pydantic import ConfigDict

from trainer.config.checks import require, require_count

SOLO: Final = "solo"
_SCHEMES: Final = ("http://", "https://")


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorConfig:
    """The connection to a collector."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    collector: str | None = None
    """Address of a collector; solo: the job evaluates the rules itself; null: nobody watches."""
    run: str = "idefics"
    """Name of the run; the same name comes back to the same run."""
    mode: Literal["observe", "propose", "auto"] = "propose"
    """Only tell; ask a person before acting; act."""
    policy: str | None = None
    """Rule file of this run, or the name of a preset that comes with one; null: the collector's
    own."""
    snapshot_every: int = 25
    """Steps between two snapshots in memory."""
    keep_snapshots: int = 6
    """Snapshots in memory at once; each is weights and optimizer state, three times the weights."""

    def __post_init__(self) -> None:
        require(bool(self.run.strip()), "monitor.run", self.run, "a name that is not empty")
        require(
            self.collector in (None, SOLO) or str(self.collector).startswith(_SCHEMES),
            "monitor.collector",
            self.collector,
            "an address that starts with http:// or https://, or solo",
        )
        require_count("monitor.snapshot_every", self.snapshot_every)
        require_count("monitor.keep_snapshots", self.keep_snapshots)

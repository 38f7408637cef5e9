"""Who watches the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from trainer.config.checks import require, require_count


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorConfig:
    """The connection to a collector."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    collector: str | None = None
    """Base address of a collector; null: nobody watches."""
    run: str = "idefics"
    """Name of the run; the same name comes back to the same run."""
    mode: Literal["observe", "propose", "auto"] = "propose"
    """Only tell; ask a person before acting; act."""
    policy: str | None = None
    """Rule file of this run; null: the collector's own."""
    snapshot_every: int = 25
    """Steps between two snapshots in memory."""
    keep_snapshots: int = 6
    """Snapshots in memory at once; each is weights and optimizer state, three times the weights."""

    def __post_init__(self) -> None:
        require(bool(self.run.strip()), "monitor.run", self.run, "a name that is not empty")
        require(
            self.collector is None or self.collector.startswith(("http://", "https://")),
            "monitor.collector",
            self.collector,
            "an address that starts with http:// or https://",
        )
        require_count("monitor.snapshot_every", self.snapshot_every)
        require_count("monitor.keep_snapshots", self.keep_snapshots)

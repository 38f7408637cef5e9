"""What a person chooses about a watched job."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from stabilizer.agent.control.guard import GuardPolicy
from stabilizer.errors import ConfigurationError
from stabilizer.protocol.decisions import Mode


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """What a person chooses about a watched job."""

    url: str | None
    """Address of the collector; None evaluates the rules in the job itself."""
    run: str
    key: str = ""
    """Tells runs of the same name apart, for example a scheduler's job id."""
    token: str | None = field(default=None, repr=False)
    mode: Mode | None = None
    """None leaves it to the policy, which ships with `propose`."""
    policy: Path | None = None
    """Rule file for this run; None takes the collector's, or the one that ships."""
    snapshot_every: int = 25
    """Optimizer steps between two snapshots."""
    keep_snapshots: int = 6
    snapshot_bytes: int | None = None
    """Host memory of one rank for snapshots; None shares a quarter of the machine's."""
    guard: GuardPolicy = GuardPolicy.OBSERVE
    max_queries: int = 64
    """Query positions of an attention that a sampled step looks at."""
    attention: bool = True
    head: str | None = None
    """Dotted name of the module whose outputs are the logits; None for `lm_head`."""

    def __post_init__(self) -> None:
        bounds = {"snapshot_every": self.snapshot_every, "keep_snapshots": self.keep_snapshots}
        if self.snapshot_bytes is not None:
            bounds["snapshot_bytes"] = self.snapshot_bytes
        for name, value in bounds.items():
            if value < 1:
                raise ConfigurationError(f"{name} is {value}; allowed: 1 or more")

    def policy_text(self) -> str | None:
        """The rule file's text.

        Raises:
            ConfigurationError: It cannot be read.
        """
        if self.policy is None:
            return None
        try:
            return self.policy.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"policy {str(self.policy)!r} cannot be read") from error

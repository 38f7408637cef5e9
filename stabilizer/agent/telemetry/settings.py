"""How the agent reports: sizes, waits and the place of the spool."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path

from stabilizer.errors import ConfigurationError


def _strict_from_environment() -> bool:
    return os.environ.get("STABILIZER_STRICT", "") == "1"


def _spool_from_environment() -> Path | None:
    folder = os.environ.get("STABILIZER_SPOOL_DIRECTORY", "")
    return Path(folder) if folder else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReporterSettings:
    """Settings of one `Reporter`.

    Raises:
        ConfigurationError: A size or a wait is not a positive number.
    """

    register_wait_seconds: float = 2.0
    """Seconds that the start of training waits for the collector's first answer; 0 for none."""
    connect_timeout_seconds: float = 2.0
    """Seconds for one connection attempt, TLS handshake included."""
    request_timeout_seconds: float = 10.0
    """Seconds from the first byte sent to the last byte read, however slowly they drip."""
    poll_wait_seconds: float = 20.0
    """Seconds that a paused job asks the collector to hold a poll open."""
    linger_seconds: float = 0.1
    """Seconds that a frame may wait for others to share its batch."""
    batch_steps: int = 16
    """Steps that fill a batch before its time."""
    catch_up_steps: int = 128
    """Steps in one batch when the sender has fallen behind."""
    batch_bytes: int = 4 * 2**20
    """Bytes of values that fill a batch before its time; one step may be larger alone."""
    buffer_steps: int = 4096
    """Steps held in memory between training and sender; beyond it the oldest are dropped."""
    spool_directory: Path | None = field(default_factory=_spool_from_environment)
    """Where undelivered batches wait, for a later process of the same run as well; None takes a
    folder of this user in the node's temporary folder. Preset by STABILIZER_SPOOL_DIRECTORY."""
    spool_bytes: int = 256 * 2**20
    """Bytes on disk that one process may fill; beyond it the oldest are dropped; 0 for no spool."""
    segment_bytes: int = 4 * 2**20
    """Has no effect since 0.2; accepted so that scripts of 0.1 still run."""
    backoff_first_seconds: float = 0.25
    """Seconds before the second try; doubles with each further failure, with jitter."""
    backoff_max_seconds: float = 30.0
    """Longest wait between two tries of a collector that does not answer well."""
    refused_retry_seconds: float = 300.0
    """Wait after a refusal that a retry does not mend: token, right, version, registration."""
    poison_tries: int = 6
    """Server errors (status 500) in a row for one batch before it is dropped and counted."""
    answer_bytes: int = 8 * 2**20
    """Longest answer that is read; a longer one is a failure."""
    log_every_seconds: float = 60.0
    """Shortest time between two log lines about the same failure."""
    exit_flush_seconds: float = 2.0
    """Seconds that a dying interpreter spends on sending or spooling what nobody closed."""
    strict: bool = field(default_factory=_strict_from_environment)
    """Let a mistake in the sender end its thread loudly; tests do, by STABILIZER_STRICT=1."""

    def __post_init__(self) -> None:
        """Check every size and wait."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            lowest = 0 if item.name in ("register_wait_seconds", "spool_bytes") else None
            if not math.isfinite(value) or value < 0 or (value == 0 and lowest is None):
                allowed = "a number of at least 0" if lowest == 0 else "a number above 0"
                raise ConfigurationError(
                    f"reporter.{item.name} is {value!r}; allowed: {allowed}",
                )

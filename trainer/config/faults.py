"""Failures on demand; none by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from trainer.config.checks import require_count, require_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class BadDocumentsConfig:
    """Documents of a window of the stream are garbage.

    It is the data that is bad: a rollback meets it again unless it skips past the window.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    first_sample: int
    """Position in the stream of the first bad document (step times global batch)."""
    samples: int
    """How many documents are bad."""
    kind: Literal["random_tokens", "shuffled_text"] = "random_tokens"
    """Text replaced by random tokens, or its own tokens in random order."""

    def __post_init__(self) -> None:
        require_count("faults.bad_documents.first_sample", self.first_sample, at_least=0)
        require_count("faults.bad_documents.samples", self.samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class LrRestartConfig:
    """The schedule starts again from its warm-up, too high, as in the 80B run after a resume.

    An accident of the process: it happens once. A rollback that restores the scheduler undoes it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: int
    """Completed optimizer steps after which it happens."""
    factor: float
    """Multiplier on the peak rates of the schedule."""

    def __post_init__(self) -> None:
        require_count("faults.lr_restart.step", self.step)
        require_positive("faults.lr_restart.factor", self.factor)


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultsConfig:
    """Which failures happen in this run."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    bad_documents: BadDocumentsConfig | None = None
    """A window of garbage in the stream; null: none."""
    lr_restart: LrRestartConfig | None = None
    """A schedule that restarts too high; null: none."""

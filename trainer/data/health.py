"""How healthy the data is: what was read and what had to be passed over, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from trainer.data.batches import Batch
from trainer.data.documents import Skip


@dataclass(frozen=True, slots=True)
class HealthMetric:
    """One number about the data."""

    name: str
    """Name of the metric."""
    value: float
    """Its value: counters count from the start of the process, on this rank."""
    labels: dict[str, str] = field(default_factory=dict)
    """source and reason, where they apply."""


class DataHealth:
    """Counts over the batches that were handed out."""

    def __init__(self, shards_skipped: Iterable[Skip] = ()) -> None:
        """Begin with the files that could not be used at all."""
        self._read: Counter[str] = Counter()
        self._skipped: Counter[tuple[str, str, str]] = Counter(
            (skip.what, skip.source, skip.reason.value) for skip in shards_skipped
        )
        self._fill = 0.0
        self.passed_over = 0
        """Documents that were met and replaced or left out."""

    def note(self, batch: Batch) -> None:
        """Count one batch."""
        self._read.update(batch["source"])
        for what, source, reason, _ in batch["skipped"]:
            self._skipped[what, source, reason] += 1
        self.passed_over += batch["passed_over"]
        self._fill = batch["tokens"] / max(batch["input_ids"].numel(), 1)

    def metrics(self) -> list[HealthMetric]:
        """Return all numbers.

        documents_read{source}; documents_skipped, pictures_skipped and shards_skipped, each
        {source, reason}; documents_skipped_ratio, of all documents that were met; sequence_fill,
        the part of the newest batch that is no padding.
        """
        counters = [
            HealthMetric("documents_read", count, {"source": source})
            for source, count in sorted(self._read.items())
        ]
        counters += [
            HealthMetric(f"{what}_skipped", count, {"source": source, "reason": reason})
            for (what, source, reason), count in sorted(self._skipped.items())
        ]
        met = self._read.total() + self.passed_over
        ratio = self.passed_over / max(met, 1)
        return [
            *counters,
            HealthMetric("documents_skipped_ratio", ratio),
            HealthMetric("sequence_fill", self._fill),
        ]

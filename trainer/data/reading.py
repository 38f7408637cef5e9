"""Find the document of a position, or a substitute if it is unusable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

from stabilizer.errors import ConfigurationError
from trainer.config import FiltersConfig
from trainer.data.documents import DAMAGE, BadDocumentError, Document, DocumentSource, Reason, Skip
from trainer.data.order import MixtureOrder, Place
from trainer.data.selection import DocumentFilter, FilterVerdict, Quarantine
from trainer.data.sequences import TokenFault

_MAX_REJECTED: Final = 1000  # unwanted documents in a row: then the limits leave nothing over

_NO_LIMITS: Final = DocumentFilter(FiltersConfig())

DocumentFault: TypeAlias = Callable[[int, Document], Document]
"""(position, document) -> document; may raise BadDocumentError to make it unusable."""
PositionFault: TypeAlias = Callable[[int], int]
"""position -> the position whose document is read there; the identity outside of its window."""

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFaults:
    """Injected failures of the data.

    Each is a function of the position in the stream, so that it recurs whenever the position is
    read. With packing, `document` and `position` count documents, `tokens` counts sequences.
    """

    tokens: TokenFault | None = None
    """Changes the tokens of a sequence."""
    document: DocumentFault | None = None
    """Changes a document that was read, or makes it unusable."""
    position: PositionFault | None = None
    """Reads the document of another position."""


@dataclass(frozen=True, slots=True)
class Found(Generic[Made]):
    """The result of a document, and what was skipped to find it."""

    made: Made
    skips: tuple[Skip, ...]


class DocumentReader:
    """Documents by position in the mixture; substitutes for unusable ones are deterministic."""

    def __init__(
        self,
        sources: Mapping[str, DocumentSource],
        order: MixtureOrder,
        *,
        filters: Mapping[str, DocumentFilter] | None = None,
        quarantine: Quarantine | None = None,
        faults: StreamFaults | None = None,
        max_bad_in_a_row: int = 16,
    ) -> None:
        """Join order and documents.

        Args:
            sources: By name.
            order: Says which document comes when.
            filters: Limits by source; a source without any has none.
            quarantine: Documents and positions that are left out.
            faults: Failures on demand.
            max_bad_in_a_row: Damaged documents skipped for one position before the job fails.
        """
        self._sources = sources
        self._order = order
        self._filters = filters or {}
        self._quarantine = quarantine or Quarantine()
        self._faults = faults or StreamFaults()
        self._max_bad = max_bad_in_a_row

    @property
    def documents(self) -> int:
        """Number of documents in one pass over all sources."""
        return self._order.documents

    @property
    def shards_skipped(self) -> Sequence[Skip]:
        """Unusable files of all sources."""
        return [skip for source in self._sources.values() for skip in source.skipped]

    def place(self, position: int) -> Place:
        """Return the document of a position, usable or not."""
        fault = self._faults.position
        return self._order.locate(position if fault is None else fault(position))

    def document(self, sample_id: str) -> Document:
        """Return the document with this id, without filters, quarantine or faults.

        Raises:
            KeyError: There is none.
            BadDocumentError: It cannot be read.
        """
        source = self._sources[sample_id.partition("/")[0]]
        return source.document(source.number(sample_id))

    def judge(self, document: Document) -> FilterVerdict:
        """Return the verdict of its source's limits on a document."""
        return self._filters.get(document.source, _NO_LIMITS).judge(document)

    def find(self, position: int, make: Callable[[Document], Made]) -> Found[Made]:
        """Return what `make` makes of the first usable document for a position.

        Args:
            position: In the mixture.
            make: Raises BadDocumentError for a document that it cannot use.

        Raises:
            ConfigurationError: Too many in a row are unusable; it names the last one.
        """
        if self._faults.position is not None:
            position = self._faults.position(position)
        place = self._order.locate(position)
        skips: list[Skip] = []
        reasons: Counter[Reason] = Counter()
        while True:
            try:
                made = make(self._wanted(place, position, is_first=not reasons, skips=skips))
            except BadDocumentError as error:
                reasons[error.reason] += 1
                skips.append(Skip("documents", place.source, error.reason, error.sample_id))
                self._check(position, reasons, error)
                place = self._order.substitute(position, reasons.total())
            else:
                return Found(made, tuple(skips))

    def _wanted(
        self, place: Place, position: int, *, is_first: bool, skips: list[Skip]
    ) -> Document:
        """Return a document that passes quarantine and filters."""
        document = self._sources[place.source].document(place.number)
        name = document.sample_id
        if name in self._quarantine.sample_ids or (
            is_first and self._quarantine.holds_position(position)
        ):
            raise BadDocumentError(name, "is in quarantine", Reason.QUARANTINED)
        if self._faults.document is not None:
            document = self._faults.document(position, document)
        verdict = self.judge(document)
        if verdict.rejected:
            raise BadDocumentError(name, "is filtered out", verdict.rejected[0])
        skips.extend(verdict.removed)
        return verdict.document

    def _check(self, position: int, reasons: Counter[Reason], last: BadDocumentError) -> None:
        damaged = sum(count for reason, count in reasons.items() if reason in DAMAGE)
        if damaged <= self._max_bad and reasons.total() <= _MAX_REJECTED:
            return
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        field = "data.max_bad_in_a_row" if damaged > self._max_bad else "data.filters"
        raise ConfigurationError(
            f"{field}: {reasons.total()} unusable documents in a row at sample {position} "
            f"({counts}); the last one: {last}"
        ) from last

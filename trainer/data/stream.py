"""The stream of training samples: a pure function of (seed, position).

Position p is the p-th document that the whole job reads, over all ranks. Nothing else is state:
any position can be asked for at any time, in any process, and gives the same sample. So a reader
resumes at a sample, skips samples, and is split over ranks and workers by arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from stabilizer.errors import ConfigurationError
from trainer.data.encoding import DocumentEncoder, Sample, TokenFault
from trainer.data.parquet import BadDocumentError, ParquetSource
from trainer.data.permutation import mix, permute

_MIXTURE = 1  # what a key is for, so that no two orders are alike
_DOCUMENTS = 2


@dataclass(frozen=True, slots=True)
class Read:
    """A sample, and how many unusable documents were passed over to find it."""

    sample: Sample
    passed_over: int


class MixtureOrder:
    """Which document of which source stands at a position.

    Sources are mixed exactly: every period of sum(weights) positions holds `weight` documents of
    each source, in an order drawn for that period. Each source is read in whole passes, each pass
    in an order of its own.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, int], seed: int) -> None:
        """Take the number of documents and the weight of each source.

        Raises:
            ConfigurationError: A weight names no source.
        """
        absent = sorted(set(weights) - set(sizes))
        if absent:
            raise ConfigurationError(f"data.sources: {absent[0]!r} is not in the corpus")
        self._names = sorted(weights)
        self._sizes = [sizes[name] for name in self._names]
        self._weights = [weights[name] for name in self._names]
        self._ends = list(accumulate(self._weights))
        self._seed = seed

    @property
    def documents(self) -> int:
        """Documents in all sources together."""
        return sum(self._sizes)

    def locate(self, position: int) -> tuple[str, int]:
        """Return the source's name and the number of the document in it."""
        source, turn = self._turn(position)
        return self._names[source], self._number(source, turn)

    def alternative(self, position: int, attempt: int) -> tuple[str, int]:
        """Return what is read instead when the document of this position cannot be used.

        Args:
            position: Where the document stands.
            attempt: From 1; each gives another document of the same source.
        """
        source, turn = self._turn(position)
        size = self._sizes[source]
        return self._names[source], (self._number(source, turn) + attempt) % size

    def _turn(self, position: int) -> tuple[int, int]:
        """Return the source at a position, and how many documents of it came before."""
        period, offset = divmod(position, self._ends[-1])
        slot = permute(offset, self._ends[-1], mix(self._seed, _MIXTURE, period))
        source = next(i for i, end in enumerate(self._ends) if slot < end)
        weight = self._weights[source]
        return source, period * weight + slot - (self._ends[source] - weight)

    def _number(self, source: int, turn: int) -> int:
        number_of_pass, index = divmod(turn, self._sizes[source])
        key = mix(self._seed, _DOCUMENTS, source, number_of_pass)
        return permute(index, self._sizes[source], key)


class DocumentStream:
    """Samples by position. Holds open files and caches, no position of its own."""

    def __init__(
        self,
        sources: Mapping[str, ParquetSource],
        order: MixtureOrder,
        encoder: DocumentEncoder,
        *,
        fault: TokenFault | None = None,
        max_bad_in_a_row: int = 16,
    ) -> None:
        """Join order, documents and layout.

        Args:
            sources: By name.
            order: Says which document comes when.
            encoder: Makes samples of documents.
            fault: A failure on demand, by position.
            max_bad_in_a_row: Unusable documents passed over for one position before giving up.
        """
        self._sources = sources
        self._order = order
        self._encoder = encoder
        self._fault = fault
        self._max_bad = max_bad_in_a_row

    @property
    def documents(self) -> int:
        """Documents in one pass over the corpus."""
        return self._order.documents

    def read(self, position: int) -> Read:
        """Return the sample at a position; an unusable document is replaced by the next usable one.

        Raises:
            ConfigurationError: Too many unusable documents in a row; it names the last one.
        """
        name, number = self._order.locate(position)
        passed_over = 0
        while True:
            try:
                document = self._sources[name].document(number)
                sample = self._encoder.encode(document, position, self._fault)
                return Read(sample, passed_over)
            except BadDocumentError as error:
                passed_over += 1
                if passed_over > self._max_bad:
                    raise ConfigurationError(
                        f"data.max_bad_in_a_row: {passed_over} unusable documents in a row at "
                        f"sample {position}; the last one: {error}"
                    ) from error
                name, number = self._order.alternative(position, passed_over)

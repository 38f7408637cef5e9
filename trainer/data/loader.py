"""Batches of a rank, the record of damaged documents, and the loader that trains on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stabilizer.errors import ConfigurationError, StabilizerError
from trainer.data.documents import Skip
from trainer.data.stream import Read, SampleStream


class TrainingBatch(TypedDict):
    """Shape letters: B batch_size, S sequence_length, I max_images, C colours, H, W image_size.

    Documents are numbered over the batch, row by row; without packing there is one in each row.
    """

    input_ids: Tensor  # [B, S] int64
    attention_mask: Tensor  # [B, S] int64
    labels: Tensor  # [B, S] int64
    pixel_values: Tensor  # [B, I, C, H, W] float32
    image_attention_mask: Tensor  # [B, S, I] int64
    document_ids: Tensor  # [B, S] int64; number of the token's document, -1 at padding
    source_ids: Tensor  # [B, S] int64; index of its source in source_names, -1 at padding
    source_names: list[str]  # of the sources in this batch, sorted
    positions: list[int]  # position of each row in the stream
    sample_ids: list[str]  # of each document
    source: list[str]  # of each document
    rows: list[int]  # of each document in the batch
    tokens: int  # without padding
    passed_over: int  # unusable documents that were skipped
    skipped: list[tuple[str, str, str, str]]  # what, source, reason and id of everything skipped


def collate(reads: Sequence[Read]) -> TrainingBatch:
    """Stack samples into a batch."""
    samples = [read.sample for read in reads]
    sources = [source for sample in samples for source in sample.sources]
    names = sorted(set(sources))
    documents = _number_documents([sample.document_ids for sample in samples])
    # One more for padding: -1 picks the last.
    source_of = torch.tensor([*(names.index(source) for source in sources), -1])
    skips = [skip for read in reads for skip in read.skips]
    return TrainingBatch(
        input_ids=torch.stack([sample.input_ids for sample in samples]),
        attention_mask=torch.stack([sample.attention_mask for sample in samples]),
        labels=torch.stack([sample.labels for sample in samples]),
        pixel_values=torch.stack([sample.pixel_values for sample in samples]),
        image_attention_mask=torch.stack([sample.image_attention_mask for sample in samples]),
        document_ids=documents,
        source_ids=source_of[documents],
        source_names=names,
        positions=[sample.position for sample in samples],
        sample_ids=[name for sample in samples for name in sample.sample_ids],
        source=sources,
        rows=[row for row, sample in enumerate(samples) for _ in sample.sources],
        tokens=int(documents.ge(0).sum()),
        passed_over=sum(skip.what == "documents" for skip in skips),
        skipped=[(skip.what, skip.source, skip.reason.value, skip.sample_id) for skip in skips],
    )


def _number_documents(rows: Sequence[Tensor]) -> Tensor:
    """Number documents over the batch, given their numbers in each row; [B, S] int64."""
    numbered: list[Tensor] = []
    first = 0
    for row in rows:
        numbered.append(torch.where(row >= 0, row + first, -1))
        first += int(row.max()) + 1
    return torch.stack(numbered)


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
    """Counters over the batches returned so far."""

    def __init__(self, shards_skipped: Iterable[Skip] = ()) -> None:
        """Begin with the unusable files."""
        self._read: Counter[str] = Counter()
        self._skipped: Counter[tuple[str, str, str]] = Counter(
            (skip.what, skip.source, skip.reason.value) for skip in shards_skipped
        )
        self._fill = 0.0
        self.passed_over = 0
        """Number of documents that were replaced or left out."""

    def note(self, batch: TrainingBatch) -> None:
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


class StaleIteratorError(StabilizerError):
    """An iterator was used after its loader had moved; it would return the wrong data."""

    code = "stale_iterator"


class StreamLoader:
    """Iterates over microbatches of one rank; one iteration is (the rest of) an epoch.

    Batch k after position p holds the samples [p + k*g + rank*b, p + k*g + (rank+1)*b), g being the
    global microbatch of `world_size * b` samples. The position counts the batches that the newest
    iterator has returned, not those that workers have prefetched; an iteration that stops in the
    middle continues there with the next `iter()`.
    """

    def __init__(  # noqa: PLR0913  plain numbers, all by name
        self,
        stream: SampleStream,
        *,
        batch_size: int,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epoch_samples: int = 0,
        accumulate: int = 1,
    ) -> None:
        """Start at sample 0.

        Args:
            stream: Where samples come from.
            batch_size: Samples per rank and batch, b.
            workers: Processes that prepare batches; 0: this one.
            rank: Of this process, from 0.
            world_size: Number of ranks.
            epoch_samples: Samples of the stream, over all ranks, in an epoch; 0: one pass over the
                corpus, rounded down to whole optimizer steps but at least one.
            accumulate: Batches of one optimizer step; one cut short would be a smaller step.
        """
        self._stream = stream
        self._batch_size = batch_size
        self._workers = workers
        self._rank = rank
        self._step = batch_size * world_size
        whole = self._step * accumulate
        passes = stream.samples_per_pass - stream.samples_per_pass % whole
        self._epoch = epoch_samples or max(passes, whole)
        self._samples = 0
        self._health = DataHealth(stream.shards_skipped)
        self._skipped_windows: list[tuple[int, int]] = []
        self._generation = 0

    @property
    def samples(self) -> int:
        """Samples of the stream consumed so far, over all ranks."""
        return self._samples

    @property
    def batch_size(self) -> int:
        """Samples per rank and batch."""
        return self._batch_size

    @property
    def samples_per_batch(self) -> int:
        """Samples of the stream per batch, over all ranks."""
        return self._step

    @property
    def passed_over(self) -> int:
        """Unusable documents that this rank has replaced since the loader was created."""
        return self._health.passed_over

    @property
    def health(self) -> list[HealthMetric]:
        """Counters of this rank since the loader was created."""
        return self._health.metrics()

    @property
    def skipped_windows(self) -> list[tuple[int, int]]:
        """Windows of the stream, [from, to), that were skipped since the loader was created."""
        return list(self._skipped_windows)

    def state_dict(self) -> dict[str, int]:
        """Return the position after the batches returned so far."""
        return {"samples": self._samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Move to a position; the next `iter()` yields the very next sample.

        Raises:
            ValueError: The state is not one of this class.
        """
        samples = state.get("samples")
        if not isinstance(samples, int) or samples < 0:
            raise ValueError(f"state of a StreamLoader: samples is {samples!r}, not a position")
        self._samples = samples
        self._generation += 1

    def skip_samples(self, n: int) -> None:
        """Move the position forward; the next `iter()` begins there.

        Args:
            n: Samples of the stream, over all ranks.

        Raises:
            ValueError: The number is negative.
        """
        if n < 0:
            raise ValueError(f"skip_samples: {n} is not a number of samples to skip")
        if n:
            self._skipped_windows.append((self._samples, self._samples + n))
        self._samples += n
        self._generation += 1

    def __len__(self) -> int:
        """Return the batches of a whole epoch."""
        return ceil(self._epoch / self._step)

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Yield the batches up to the end of the epoch in which the position lies.

        Raises:
            StaleIteratorError: On `next()`, after the loader was moved or iterated again.
        """
        self._generation += 1
        return self._iterate(self._generation)

    def _iterate(self, generation: int) -> Iterator[TrainingBatch]:
        for made in self._batches():
            if generation != self._generation:
                raise StaleIteratorError(
                    "this iterator's loader was moved: take a new iter() of it"
                )
            if isinstance(made, _Refusal):
                raise ConfigurationError(made.message)
            self._samples += self._step
            self._health.note(made)
            yield made

    def _batches(self) -> Iterator[TrainingBatch | _Refusal]:
        end = (self._samples // self._epoch + 1) * self._epoch
        count = ceil((end - self._samples) / self._step)
        first = self._samples + self._rank * self._batch_size
        dataset = _StreamSlice(self._stream, first, self._step, count, self._batch_size)
        if not self._workers:
            return iter(dataset)
        # A generator of its own: seeding the workers must not touch the job's random state.
        generator = torch.Generator().manual_seed(0)
        return iter(
            DataLoader(dataset, batch_size=None, num_workers=self._workers, generator=generator)
        )


class _Refusal(NamedTuple):
    """Why a worker stops; a raised exception would arrive as the text of a traceback."""

    message: str


class _StreamSlice(IterableDataset["TrainingBatch | _Refusal"]):
    """Every `step` samples from `first` on, a batch; the w-th of n workers makes each n-th one."""

    def __init__(
        self, stream: SampleStream, first: int, step: int, count: int, batch_size: int
    ) -> None:
        self._stream = stream
        self._first = first
        self._step = step
        self._count = count
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[TrainingBatch | _Refusal]:
        worker = get_worker_info()
        start, stride = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for number in range(start, self._count, stride):
            begin = self._first + number * self._step
            try:
                yield collate([self._stream.read(begin + i) for i in range(self._batch_size)])
            except ConfigurationError as error:
                yield _Refusal(error.message)
                return

"""`StreamLoader`: batches of a stream, resumable to the sample, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stabilizer.errors import ConfigurationError, StabilizerError
from trainer.data.batches import Batch, collate
from trainer.data.health import DataHealth, HealthMetric
from trainer.data.stream import SampleStream


class StaleIteratorError(StabilizerError):
    """An iterator was used after its loader had been moved; it would hand out the wrong data."""

    code = "stale_iterator"


class StreamLoader:
    """Iterates over microbatches of one rank; one iteration is (the rest of) an epoch.

    Batch k after position p holds the samples [p + k*g + rank*b, p + k*g + (rank+1)*b), g being the
    global microbatch of `world_size * b` samples. The position counts the batches that the newest
    iterator handed out, not those that workers hold ready; an iteration that is given up in the
    middle goes on there with the next `iter()`.
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
        """Samples of the stream by which one batch moves on, over all ranks."""
        return self._step

    @property
    def passed_over(self) -> int:
        """Unusable documents that this rank met and replaced since it was made."""
        return self._health.passed_over

    @property
    def health(self) -> list[HealthMetric]:
        """What this rank read and passed over since the loader was made."""
        return self._health.metrics()

    @property
    def skipped_windows(self) -> list[tuple[int, int]]:
        """Windows of the stream, [from, to), that were skipped since the loader was made."""
        return list(self._skipped_windows)

    def state_dict(self) -> dict[str, int]:
        """Return the position after the batches handed out so far."""
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
        """Move the position onwards; the next `iter()` begins there.

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

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches up to the end of the epoch in which the position lies.

        Raises:
            StaleIteratorError: On `next()`, after the loader was moved or iterated anew.
        """
        self._generation += 1
        return self._iterate(self._generation)

    def _iterate(self, generation: int) -> Iterator[Batch]:
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

    def _batches(self) -> Iterator[Batch | _Refusal]:
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
    """Why a worker gives up. An exception would come out of it as the text of a traceback."""

    message: str


class _StreamSlice(IterableDataset["Batch | _Refusal"]):
    """Every `step` samples from `first` on, a batch; the w-th of n workers makes each n-th one."""

    def __init__(
        self, stream: SampleStream, first: int, step: int, count: int, batch_size: int
    ) -> None:
        self._stream = stream
        self._first = first
        self._step = step
        self._count = count
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Batch | _Refusal]:
        worker = get_worker_info()
        start, stride = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for number in range(start, self._count, stride):
            begin = self._first + number * self._step
            try:
                yield collate([self._stream.read(begin + i) for i in range(self._batch_size)])
            except ConfigurationError as error:
                yield _Refusal(error.message)
                return

"""The training data of a Lightning fit loop: its position, and how to restore it.

Lightning makes its iterators in `fit_loop.setup_data`, before any callback hook of the training.
Making them again needs the random state of that moment, so the combined loader gets an `__iter__`
that puts `TrackedLoader`s in front of the loaders; the loaders themselves, which user code may
inspect, stay unchanged. The fetcher is never replaced: the running loop holds it.

Skipping data: loaders that can skip by samples do so, and the epoch keeps its number of batches.
For others, batches are discarded and count as batches of the epoch; never the epoch's last step, so
that everything tied to the end of an epoch still happens. The result says what was skipped.
"""
# ruff: noqa: SLF001  rewinding in place needs Lightning's internals; find_obstacle checks them

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher, _PrefetchDataFetcher
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.combined_loader import _SUPPORTED_MODES, CombinedLoader

from stabilizer.agent.control.loaders import LoaderPosition, TrackedLoader
from stabilizer.agent.control.torch_state import RandomState, restore_random_state
from stabilizer.errors import RestoreError


@dataclass(frozen=True)
class DataPosition:
    """Position of the training data at a step boundary."""

    loader: CombinedLoader
    """The loader at that time: it may have been reloaded since."""
    handed_out: tuple[LoaderPosition, ...]
    """After the batches that the fetcher has taken, including prefetched ones."""
    consumed: tuple[LoaderPosition, ...]
    """After the batches that training has used."""
    counters: dict[str, Any]
    prefetched: list[Any]
    samples: int


class _TrackedCombinedLoader(CombinedLoader):
    """Replaces the class of a combined loader; the only added state is `_tracked`."""

    _tracked: list[TrackedLoader]

    def __iter__(self) -> _TrackedCombinedLoader:
        mode = _SUPPORTED_MODES[self._mode]["iterator"](list(self._tracked), self._limits)
        iter(mode)
        self._iterator = mode
        return self


class TrainingData:
    """Tracks and rewinds the data of one trainer's fit loop."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._last_tracked: list[TrackedLoader] = []

    def track(self) -> None:
        """Wrap the loaders, after they were made and before they are iterated."""
        loader = self._trainer.fit_loop._combined_loader
        if loader is None or type(loader) is not CombinedLoader:
            return  # no data, tracked already, or a custom class: see `unsupported`
        ranks = data_ranks(self._trainer)
        # A reload may return the same loader, with worker processes that are still alive.
        known, tracked = self._last_tracked, []
        for part in loader.flattened:
            again = next((t for t in known if t.loader is part and t not in tracked), None)
            tracked.append(TrackedLoader(part, ranks) if again is None else again)
        self._last_tracked = tracked
        if not all(_has_len(part) for part in tracked):
            for part in tracked:
                # Lightning's fetcher then prefetches one batch; at the end of a skip, one step's.
                part.lag = max(int(self._trainer.accumulate_grad_batches), 1)
        loader.__class__ = _TrackedCombinedLoader
        loader._tracked = tracked  # type: ignore[attr-defined]  # of the class it now has

    def untrack(self) -> None:
        """Restore the loader's own class."""
        loader = self._trainer.fit_loop._combined_loader
        if isinstance(loader, _TrackedCombinedLoader):
            loader.__class__ = CombinedLoader  # type: ignore[assignment]  # restored
            del loader._tracked

    @property
    def unsupported(self) -> str | None:
        """Why the data cannot be rewound; None if it can."""
        fit_loop = self._trainer.fit_loop
        if isinstance(fit_loop._data_fetcher, _DataLoaderIterDataFetcher):
            return "training_step takes dataloader_iter and fetches batches by itself"
        if not isinstance(fit_loop._data_fetcher, _PrefetchDataFetcher):
            return f"the data fetcher {type(fit_loop._data_fetcher).__name__} is unknown"
        loader = fit_loop._combined_loader
        if not isinstance(loader, _TrackedCombinedLoader):
            return f"the combined loader {type(loader).__name__} is not Lightning's own"
        reasons = (part.unsupported for part in loader._tracked)
        return next((reason for reason in reasons if reason is not None), None)

    @property
    def samples(self) -> int:
        """Samples consumed by training, over all loaders and ranks."""
        unused = len(self._fetcher.batches)
        return sum(part.samples(unused) for part in self._tracked)

    def position(self) -> DataPosition:
        """Return the current position, between two batches."""
        fetcher, mode = self._fetcher, self._loader._iterator
        unused = len(fetcher.batches)
        return DataPosition(
            loader=self._loader,
            handed_out=tuple(part.position() for part in self._tracked),
            consumed=tuple(part.position(unused) for part in self._tracked),
            counters={
                "fetched": fetcher.fetched,
                "done": fetcher.done,
                "length": fetcher.length,
                "index": mode._idx if mode is not None else 0,
                "consumed": list(getattr(mode, "_consumed", ())),
                "max_batches": self._trainer.fit_loop.max_batches,
                "val_check_batch": self._trainer.val_check_batch,
                "reload_epoch": self._trainer.fit_loop._last_train_dl_reload_epoch,
            },
            prefetched=copy.deepcopy(fetcher.batches),
            samples=self.samples,
        )

    def skips_by_samples(self, position: DataPosition) -> bool:
        """Return whether data is skipped by samples rather than by discarding batches."""
        loader = position.loader
        return isinstance(loader, _TrackedCombinedLoader) and all(
            part.is_skippable for part in loader._tracked
        )

    def restore(self, position: DataPosition, random: RandomState, skip_batches: int) -> int:
        """Restore a position and skip data.

        Args:
            position: Position to restore.
            random: Random state at that position; restored after the loaders.
            skip_batches: Batches of this rank to skip.

        Returns:
            Number of discarded batches, which count as batches of the epoch; 0 for loaders that
            skip by samples, which leave the epoch its length.
        """
        fit_loop, trainer = self._trainer.fit_loop, self._trainer
        if fit_loop._combined_loader is not position.loader:
            fit_loop._combined_loader = position.loader
            self._fetcher.setup(position.loader)
        fit_loop.max_batches = position.counters["max_batches"]
        fit_loop._last_train_dl_reload_epoch = position.counters["reload_epoch"]
        trainer.val_check_batch = position.counters["val_check_batch"]
        by_samples = skip_batches > 0 and self.skips_by_samples(position)
        self._rebuild(position, skip_batches if by_samples else 0)
        restore_random_state(random)
        if by_samples:
            self._fill()
            return 0
        self._fetcher.batches = copy.deepcopy(position.prefetched)
        discarded = self._discard(skip_batches)
        restore_random_state(random)  # making the discarded batches may have changed it
        return discarded

    def _rebuild(self, position: DataPosition, skip_by_samples: int) -> None:
        loader, fetcher, counters = self._loader, self._fetcher, position.counters
        mode = _SUPPORTED_MODES[loader._mode]["iterator"](list(loader._tracked), loader._limits)
        places = position.consumed if skip_by_samples else position.handed_out
        for part, place in zip(loader._tracked, places, strict=True):
            skip = round(skip_by_samples * part.samples_per_batch)
            mode.iterators.append(part.restore(place, skip))
        mode._idx = counters["index"]
        if hasattr(mode, "_consumed"):
            mode._consumed = list(counters["consumed"])
        loader._iterator = mode
        fetcher.iterator = loader
        fetcher.fetched = counters["fetched"]
        fetcher.done = counters["done"]
        fetcher.length = counters["length"]
        fetcher.batches = []
        if skip_by_samples:
            fetcher.fetched -= len(position.prefetched)
            fetcher.done = False

    def _fill(self) -> None:
        """Prefetch as Lightning does at the start of an epoch without a length."""
        fetcher = self._fetcher
        if fetcher.length is not None:
            return
        for _ in range(fetcher.prefetch_batches):
            try:
                fetcher.batches.append(self._next())
            except StopIteration:
                fetcher.done = True
                return
            fetcher.fetched += 1

    def _discard(self, count: int) -> int:
        """Discard batches; at the end of the data, keep the last `accumulate` of them."""
        fetcher = self._fetcher
        keep = max(int(self._trainer.accumulate_grad_batches), 1)
        recent: deque[Any] = deque(maxlen=keep)
        discarded = 0
        while discarded < count:
            try:
                batch = fetcher.batches.pop(0) if fetcher.batches else self._fetch()
            except StopIteration:
                fetcher.batches = list(recent)
                fetcher.done = not fetcher.batches
                return discarded - len(recent)
            recent.append(batch)
            discarded += 1
        if count and not fetcher.batches:
            self._fill()
            if fetcher.done and fetcher.length is None:  # discarded up to the very end
                fetcher.batches, fetcher.done = list(recent), False
                return discarded - len(recent)
        return discarded

    def _fetch(self) -> Any:  # noqa: ANN401  a batch is whatever the loader makes
        batch = self._next()
        self._fetcher.fetched += 1
        return batch

    def _next(self) -> Any:  # noqa: ANN401  a batch is whatever the loader makes
        return next(self._loader)

    @property
    def _loader(self) -> _TrackedCombinedLoader:
        loader = self._trainer.fit_loop._combined_loader
        if not isinstance(loader, _TrackedCombinedLoader):
            raise RestoreError("the training data is not tracked")
        return loader

    @property
    def _tracked(self) -> list[TrackedLoader]:
        return self._loader._tracked

    @property
    def _fetcher(self) -> _PrefetchDataFetcher:
        fetcher = self._trainer.fit_loop._data_fetcher
        if not isinstance(fetcher, _PrefetchDataFetcher):
            raise RestoreError(f"the data fetcher {type(fetcher).__name__} is unknown")
        return fetcher


def data_ranks(trainer: Trainer) -> int:
    """Return how many ranks read different data: with tensor parallelism, several read the same."""
    strategy = trainer.strategy
    if not isinstance(strategy, ParallelStrategy):
        return trainer.world_size
    return int(strategy.distributed_sampler_kwargs["num_replicas"])


def _has_len(loader: TrackedLoader) -> bool:
    try:
        len(loader)
    except (TypeError, NotImplementedError):
        return False
    return True

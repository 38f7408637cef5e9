"""Data loaders whose position is known and can be restored.

A loader is tracked in one of four ways:

stateful    It has `state_dict` and `load_state_dict`, which are trusted. With `skip_samples` and
            `samples` it can also skip by samples.
workers     A DataLoader with worker processes. Its iterator is started again in the same
            conditions, and the batches already used are made and discarded: workers, their random
            states and whatever their datasets keep are then as before. Persistent workers carry
            state from epoch to epoch: all their epochs are replayed.
indexed     A DataLoader without workers over a map-style dataset: only its sampler is advanced.
replayed    Any other iterable, replayed and discarded in the main process. If it draws from the
            global random state, that state is kept for every batch, up to a limit.

Restoring costs as much as making the discarded batches; for large data, use a stateful loader. Not
tracked: what a map-style dataset keeps in the main process (no workers).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, IterableDataset

from stabilizer.agent.control.torch_state import (
    RandomState,
    capture_random_state,
    restore_random_state,
)
from stabilizer.errors import RestoreError


@dataclass(frozen=True)
class StartConditions:
    """Global random state, the loader's own generators, and the epochs set on its samplers."""

    random: RandomState
    generators: tuple[torch.Tensor | None, ...]
    """Of every part; None for one without."""
    epochs: tuple[int | None, ...]

    @classmethod
    def of(cls, loader: object) -> StartConditions:
        """Read them for a loader without changing anything."""
        return cls(
            random=capture_random_state(),
            generators=tuple(
                None if generator is None else generator.get_state()
                for _, generator in _generators(loader)
            ),
            epochs=tuple(getattr(part, "epoch", None) for part in _epoch_aware(loader)),
        )

    def restore_all(self, loader: object) -> None:
        """Restore everything, including the global random state."""
        restore_random_state(self.random)
        self.restore_own(loader)

    def restore_own(self, loader: object) -> None:
        """Restore what belongs to the loader: its generators and epochs."""
        for (part, generator), state in zip(_generators(loader), self.generators, strict=True):
            if generator is not None and state is not None:
                generator.set_state(state)
            elif generator is not None:  # a sampler has made its own at its first pass
                part.generator = None
        for part, epoch in zip(_epoch_aware(loader), self.epochs, strict=True):
            if isinstance(epoch, int):
                part.set_epoch(epoch)  # type: ignore[attr-defined]  # checked by _epoch_aware


def _parts(loader: object) -> Iterator[object]:
    """Yield the parts of a loader that determine the order of the data, each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    candidates = (
        loader,
        getattr(loader, "dataset", None),
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
    )
    seen: set[int] = set()
    for part in candidates:
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            yield part


def _generators(loader: object) -> Iterator[tuple[Any, torch.Generator | None]]:
    """Yield every part and its generator; one that several parts share counts once."""
    seen: set[int] = set()
    for part in _parts(loader):
        found = getattr(part, "generator", None)
        is_new = isinstance(found, torch.Generator) and id(found) not in seen
        seen.add(id(found))
        yield part, found if is_new else None


def _epoch_aware(loader: object) -> Iterable[object]:
    return [part for part in _parts(loader) if callable(getattr(part, "set_epoch", None))]


def count_samples(batch: object) -> int | None:
    """Return the number of samples in a batch: the length of its first tensor; None without one."""
    if isinstance(batch, torch.Tensor):
        return int(batch.shape[0]) if batch.ndim > 0 else 1
    if isinstance(batch, Mapping):
        children: Iterable[object] = batch.values()
    elif isinstance(batch, list | tuple):
        children = batch
    else:
        return None
    counts = (count_samples(child) for child in children)
    return next((count for count in counts if count is not None), None)


_MAX_TRAIL_BYTES: Final = 64 * 2**20

Tracking = Literal["stateful", "workers", "indexed", "replayed"]


@runtime_checkable
class StatefulLoader(Protocol):
    """A loader that knows its position after the batches it has yielded."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from this position at the next `iter()`."""


@runtime_checkable
class SkippableLoader(StatefulLoader, Protocol):
    """A stateful loader that can skip by samples."""

    samples: int

    def skip_samples(self, n: int) -> None:
        """Advance the position by n samples."""


@dataclass(frozen=True)
class Pass:
    """One pass through a loader, so far."""

    start: StartConditions
    """At `iter()`."""
    first: StartConditions | None = None
    """At the first `next()`: without workers, samplers draw their seed only there."""
    batches: int = 0
    trail: list[RandomState | None] = field(default_factory=list)
    """Random state before each batch that changed it (`replayed` only); shared, append-only."""
    drawn: int = 0
    """Indices drawn from the sampler; workers get theirs ahead of time."""
    digest: int = 0
    """Digest of those indices, to verify that a replay draws the same."""


@dataclass(frozen=True)
class LoaderPosition:
    """Position of a loader after the batches it has yielded."""

    passes: tuple[Pass, ...]
    state: dict[str, Any] | None
    """State of a stateful loader."""
    samples: int
    recent: tuple[tuple[int, dict[str, Any] | None], ...]
    """Samples and state after each of the last batches, which may be unused yet."""
    own: StartConditions
    """Generators and epochs at the time of the snapshot."""
    has_skipped: bool = False
    """Whether the loader has skipped samples: its epochs then no longer end where the job's do."""


class TrackedLoader:
    """Wraps a loader, yields its batches unchanged, and tracks its position."""

    def __init__(self, loader: Iterable[Any], world_size: int = 1) -> None:
        self.loader: Any = loader
        self.lag = 0
        """Batches that the reader may prefetch; the position after each of them is kept."""
        self.tracking: Tracking = _tracking_of(loader)
        self._world_size = world_size
        self._inner: Iterator[Any] | None = None
        self._passes: tuple[Pass, ...] = ()
        self._indices: _DigestedIndices | None = None
        self._samples = 0
        self._has_skipped = False
        self._measured_samples = 0
        self._measured_batches = 0
        self._trail_bytes = 0
        self._recent: deque[tuple[int, dict[str, Any] | None]] = deque()

    def __len__(self) -> int:
        return len(self.loader)  # raises TypeError as the loader would

    @property
    def unsupported(self) -> str | None:
        """Why this loader cannot be rewound; None if it can."""
        workers = getattr(self.loader, "num_workers", 0)
        if (
            self.tracking == "workers"
            and workers > 1
            and not getattr(self.loader, "in_order", True)
        ):
            return "a DataLoader with in_order=False yields batches in no fixed order"
        if self._inner is not None and self._inner is self.loader:
            return "the training data is an iterator, which can be read only once"
        if self._trail_bytes > _MAX_TRAIL_BYTES:
            return (
                "the training data draws from the global random state for every batch, and too "
                "many batches have passed to keep every state; give the loader state_dict and "
                "load_state_dict, or use worker processes"
            )
        return None

    @property
    def is_skippable(self) -> bool:
        """Whether it can skip by samples."""
        return isinstance(self.loader, SkippableLoader)

    @property
    def samples_per_batch(self) -> float:
        """Samples per batch: as the loader declares, else the mean so far."""
        declared = getattr(self.loader, "samples_per_batch", None)
        if isinstance(declared, int | float) and declared > 0:
            return float(declared)
        if self._measured_batches == 0:
            return 1.0
        return self._measured_samples / self._measured_batches

    def samples(self, unused: int = 0) -> int:
        """Return the samples consumed on all ranks, without the last `unused` batches."""
        return self._position_before(unused)[0]

    def __iter__(self) -> Iterator[Any]:
        started = Pass(StartConditions.of(self.loader))
        keeps_workers = self.tracking == "workers" and bool(
            getattr(self.loader, "persistent_workers", False)
        )
        self._passes = (*self._passes_so_far(), started) if keeps_workers else (started,)
        self._trail_bytes = 0
        self._inner = iter(self.loader)
        self._digest_indices()
        self._recent.clear()
        self._remember_position()
        return _TrackedIterator(self)

    def next_batch(self) -> Any:  # noqa: ANN401  a batch is whatever the loader makes
        """Return the next batch."""
        if self._inner is None:
            raise StopIteration
        current = self._passes[-1]
        before = capture_random_state() if self.tracking == "replayed" else None
        if current.first is None:
            current = replace(current, first=StartConditions.of(self.loader))
        batch = self._next_after_skip() if self._has_skipped else next(self._inner)
        if before is not None:
            self._record_trail(current, before)
        self._passes = (*self._passes[:-1], replace(current, batches=current.batches + 1))
        self._count(batch)
        self._remember_position()
        return batch

    def position(self, unused: int = 0) -> LoaderPosition:
        """Return the position; for a stateful loader, the one `unused` batches ago."""
        samples, state = self._position_before(unused)
        if self.tracking == "stateful" and state is None:
            state = copy.deepcopy(self._loader_state())
        return LoaderPosition(
            passes=self._passes_so_far(),
            state=state,
            samples=samples,
            recent=tuple(self._recent),
            own=StartConditions.of(self.loader),
            has_skipped=self._has_skipped,
        )

    def restore(self, position: LoaderPosition, skip_samples: int = 0) -> Iterator[Any]:
        """Restore a position. The caller restores the global random state afterwards.

        Args:
            position: A position of this loader.
            skip_samples: Samples to skip from there; for loaders that can.

        Raises:
            RestoreError: The loader does not yield the same data again.
        """
        self.close()
        self._has_skipped = position.has_skipped or skip_samples > 0
        if self.tracking == "stateful":
            self._restore_state(position, skip_samples)
        else:
            self._replay(position)
        self._passes = position.passes
        self._samples = position.samples
        position.own.restore_own(self.loader)
        if self.tracking == "replayed":
            last = position.passes[-1]
            trail = last.trail[: last.batches]
            self._passes = (*position.passes[:-1], replace(last, trail=trail))
            self._trail_bytes = sum(state.num_bytes for state in trail if state is not None)
        self._recent = deque(position.recent)
        if skip_samples:
            self._recent.clear()
            self._remember_position()
        return _TrackedIterator(self)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of every part that has one, before a pass."""
        for part in _epoch_aware(self.loader):
            part.set_epoch(epoch)  # type: ignore[attr-defined]  # checked by _epoch_aware

    def restore_start(self, own: StartConditions, samples: int) -> None:
        """Restore the moment before a pass: the next `iter()` begins it.

        Args:
            own: Conditions of the loader at that moment.
            samples: Samples consumed by then.
        """
        self.close()
        own.restore_own(self.loader)
        self._passes = ()
        self._samples = samples
        self._recent.clear()

    def close(self) -> None:
        """Close the current iterator and its worker processes."""
        inner, self._inner = self._inner, None
        shutdown = getattr(inner, "_shutdown_workers", None)
        if callable(shutdown):
            shutdown()
        if isinstance(self.loader, DataLoader):
            self.loader._iterator = None  # noqa: SLF001  as Lightning does: drops persistent workers

    def _next_after_skip(self) -> Any:  # noqa: ANN401  a batch is whatever the loader makes
        # After a skip the job's epochs keep their number of batches, so the loader ends within one
        # and starts again. Without a length, the loader's end is the epoch's.
        inner: Any = self._inner
        try:
            return next(inner)
        except StopIteration:
            if not hasattr(self.loader, "__len__"):
                raise
        self._inner = iter(self.loader)
        return next(self._inner)

    def _restore_state(self, position: LoaderPosition, skip_samples: int) -> None:
        loader = self.loader
        if not isinstance(loader, StatefulLoader) or position.state is None:
            raise RestoreError(f"{type(loader).__name__} has no state to restore")
        loader.load_state_dict(copy.deepcopy(position.state))
        if skip_samples:
            if not isinstance(loader, SkippableLoader):
                raise RestoreError(f"{type(loader).__name__} cannot skip samples")
            loader.skip_samples(skip_samples)
        self._inner = iter(loader)

    def _replay(self, position: LoaderPosition) -> None:
        for played in position.passes:
            played.start.restore_all(self.loader)
            self._inner = iter(self.loader)
            self._digest_indices()
            try:
                self._discard(self._inner, played)
            except StopIteration as error:
                raise RestoreError(
                    "the training data ended early when it was replayed: it has changed"
                ) from error
            indices = self._indices
            if indices and (indices.drawn, indices.digest) != (played.drawn, played.digest):
                raise RestoreError(
                    "the sampler drew other indices when it was replayed: it keeps state of its "
                    "own; give the loader state_dict and load_state_dict"
                )

    def _discard(self, inner: Any, played: Pass) -> None:  # noqa: ANN401  torch's private class
        if played.first is not None:
            played.first.restore_all(self.loader)
        for index in range(played.batches):
            if self.tracking == "indexed":
                inner._next_index()  # noqa: SLF001  advances the sampler and loads nothing
                inner._num_yielded += 1  # noqa: SLF001  what its next() counts
                continue
            if self.tracking == "replayed" and (state := played.trail[index]) is not None:
                restore_random_state(state)
            next(inner)

    def _digest_indices(self) -> None:
        self._indices = None
        if self.tracking in {"workers", "indexed"} and isinstance(self.loader, DataLoader):
            inner: Any = self._inner
            self._indices = _DigestedIndices(inner._sampler_iter)  # noqa: SLF001  no public access
            inner._sampler_iter = self._indices  # noqa: SLF001  yields the same indices

    def _passes_so_far(self) -> tuple[Pass, ...]:
        """Return the passes so far, the last one with the indices drawn until now."""
        if not self._passes or self._indices is None:
            return self._passes
        last = replace(self._passes[-1], drawn=self._indices.drawn, digest=self._indices.digest)
        return (*self._passes[:-1], last)

    def _record_trail(self, current: Pass, before: RandomState) -> None:
        is_moved = not before.is_same_host_state(capture_random_state())
        current.trail.append(before if is_moved else None)
        self._trail_bytes += before.num_bytes if is_moved else 0

    def _count(self, batch: object) -> None:
        loader = self.loader
        if isinstance(loader, SkippableLoader):
            consumed = loader.samples - self._samples
            self._samples = loader.samples
        else:
            size = count_samples(batch)
            if size is None:
                size = getattr(loader, "batch_size", None) or 1
            consumed = size * self._world_size
            self._samples += consumed
        self._measured_samples += max(consumed, 0)
        self._measured_batches += 1

    def _remember_position(self) -> None:
        if isinstance(self.loader, SkippableLoader):
            self._samples = self.loader.samples
        state = (
            copy.deepcopy(self._loader_state())
            if self.lag and self.tracking == "stateful"
            else None
        )
        self._recent.append((self._samples, state))
        while len(self._recent) > self.lag + 1:
            self._recent.popleft()

    def _position_before(self, unused: int) -> tuple[int, dict[str, Any] | None]:
        if not self._recent:
            return self._samples, None
        return self._recent[max(len(self._recent) - 1 - unused, 0)]

    def _loader_state(self) -> dict[str, Any]:
        if not isinstance(self.loader, StatefulLoader):
            raise RestoreError(f"{type(self.loader).__name__} has no state_dict")
        return self.loader.state_dict()


class _TrackedIterator(Iterator[Any]):
    def __init__(self, tracked: TrackedLoader) -> None:
        self._tracked = tracked

    def __next__(self) -> Any:  # noqa: ANN401  a batch is whatever the loader makes
        return self._tracked.next_batch()


class _DigestedIndices(Iterator[object]):
    """Passes a sampler's indices on and keeps their number and digest."""

    def __init__(self, inner: Iterator[object]) -> None:
        self._inner = inner
        self.drawn = 0
        self.digest = 0

    def __next__(self) -> object:
        index = next(self._inner)
        self.drawn += 1
        self.digest = hash((self.digest, repr(index)))
        return index


def _tracking_of(loader: object) -> Tracking:
    if isinstance(loader, StatefulLoader):
        return "stateful"
    if isinstance(loader, DataLoader):
        if loader.num_workers > 0:
            return "workers"
        if not isinstance(loader.dataset, IterableDataset):
            return "indexed"
    return "replayed"

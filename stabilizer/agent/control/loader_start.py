"""What the start of a data iterator depends on, so that it can be started once more the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from stabilizer.agent.control.random_state import (
    RandomState,
    capture_random_state,
    restore_random_state,
)


@dataclass(frozen=True)
class Surroundings:
    """Global random state, the loader's own generators, and the epochs its samplers were told."""

    random: RandomState
    generators: tuple[torch.Tensor, ...]
    epochs: tuple[int | None, ...]

    @classmethod
    def of(cls, loader: object) -> Surroundings:
        """Read them for a loader, moving nothing."""
        return cls(
            random=capture_random_state(),
            generators=tuple(generator.get_state() for generator in _generators(loader)),
            epochs=tuple(getattr(part, "epoch", None) for part in _epoch_aware(loader)),
        )

    def impose(self, loader: object) -> None:
        """Put everything back, the global random state included."""
        restore_random_state(self.random)
        self.impose_own(loader)

    def impose_own(self, loader: object) -> None:
        """Put back what belongs to the loader: its generators and epochs."""
        for generator, state in zip(_generators(loader), self.generators, strict=True):
            generator.set_state(state)
        for part, epoch in zip(_epoch_aware(loader), self.epochs, strict=True):
            if isinstance(epoch, int):
                part.set_epoch(epoch)  # type: ignore[attr-defined]  # checked by _epoch_aware


def _parts(loader: object) -> Iterator[object]:
    """The objects of a loader that decide on the order of the data, each once."""
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


def _generators(loader: object) -> Iterable[torch.Generator]:
    found = (getattr(part, "generator", None) for part in _parts(loader))
    distinct = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return distinct.values()


def _epoch_aware(loader: object) -> Iterable[object]:
    return [part for part in _parts(loader) if callable(getattr(part, "set_epoch", None))]


def count_samples(batch: object) -> int | None:
    """Number of samples in a batch: length of the first tensor in it; None if there is none."""
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

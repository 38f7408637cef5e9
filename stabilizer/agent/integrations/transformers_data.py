"""The training data of a transformers Trainer: its position, and how an epoch is resumed at it.

accelerate's `DataLoaderShard` reads one batch ahead of training. Its base loader is replaced by a
tracked one, which keeps that batch. After a rollback the epoch is read by `ResumedEpoch`: first the
batch that was read ahead, then what follows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from accelerate.data_loader import DataLoaderShard
from accelerate.utils import send_to_device

from stabilizer.agent.control.loaders import LoaderPosition, StartConditions, TrackedLoader
from stabilizer.agent.control.torch_state import RandomState, restore_random_state


@dataclass(frozen=True)
class EpochPosition:
    """Position between two steps of an epoch."""

    epoch: int
    consumed: int
    """Batches of this epoch that training has used."""
    loader: LoaderPosition | None
    """Position after the batch that was read ahead; None at the start of an epoch."""
    ahead: Any
    """The batch that was read ahead."""
    own: StartConditions
    """Generators and epochs of the loader."""
    samples: int


class _TrackedBase:
    """Stands in for the base loader of a shard; everything else is the loader's own."""

    def __init__(self, tracked: TrackedLoader) -> None:
        self.tracked = tracked
        self.last: Any = None

    def __iter__(self) -> Iterator[Any]:
        return _keep_last(self, iter(self.tracked))

    def __len__(self) -> int:
        return len(self.tracked)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  the loader's attributes
        return getattr(self.tracked.loader, name)


def _keep_last(base: _TrackedBase, batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        base.last = batch
        yield batch


class ResumedEpoch:
    """The rest of an epoch, as the shard itself would have read it."""

    def __init__(self, shard: Any, ahead: Any, batches: Iterator[Any]) -> None:  # noqa: ANN401  accelerate's
        self._shard = shard
        self._ahead = ahead
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        shard, current = self._shard, self._ahead
        shard.begin()
        is_last = False
        while not is_last:
            if shard.device is not None:
                current = send_to_device(current, shard.device)
            try:
                following = next(self._batches)
            except StopIteration:
                is_last = shard.end_of_dataloader = True
                following = None
            yield current
            current = following
        shard.iteration += 1
        shard.end()


class EpochData:
    """The data of one `train` call, read epoch by epoch."""

    def __init__(self, loader: Any, world_size: int, accumulate: int) -> None:  # noqa: ANN401  accelerate's
        self.epoch = 0
        self.consumed = 0
        self.is_restored = False
        """Whether `restore` has set where reading continues."""
        self._rest: ResumedEpoch | None = None
        self._steps = 0
        self._is_foreign = False
        self._accumulate = accumulate
        self._obstacle: str | None = None
        self._shard = loader
        if type(loader) is not DataLoaderShard:
            self._obstacle = (
                f"the data is read by {type(loader).__name__}, not by a DataLoaderShard; for an "
                "iterable dataset give accelerator_config={'dispatch_batches': False}"
            )
            return
        self._tracked = TrackedLoader(loader.base_dataloader, world_size)
        self._tracked.lag = 1
        self._base = _TrackedBase(self._tracked)
        loader.base_dataloader = self._base

    def release(self) -> None:
        """Give the shard its own loader back."""
        if self._obstacle is None:
            self._shard.base_dataloader = self._tracked.loader

    def begin_epoch(self, epoch: int, steps: int, *, is_foreign: bool = False) -> None:
        """Begin an epoch.

        Args:
            epoch: Its number.
            steps: Its batches, as the trainer counts them.
            is_foreign: The trainer resumes in the middle of it, by a loader of its own.
        """
        self.epoch, self.consumed = epoch, 0
        self._steps, self._is_foreign = steps, is_foreign

    @property
    def unsupported(self) -> str | None:
        """Why the data cannot be rewound; None if it can."""
        if self._obstacle is not None:
            return self._obstacle
        if self._is_foreign:
            return "the trainer resumes in the middle of this epoch; from the next one on it can"
        if getattr(self._tracked.loader, "persistent_workers", False):
            return "persistent workers of an earlier epoch cannot be started again"
        return self._tracked.unsupported

    @property
    def samples(self) -> int:
        """Samples that training has used, over all ranks."""
        if self._obstacle is not None:
            return 0
        return self._tracked.samples(1 if self.consumed else 0)

    def position(self) -> EpochPosition:
        """Return the position, between two steps."""
        is_inside = self.consumed > 0
        return EpochPosition(
            epoch=self.epoch,
            consumed=self.consumed,
            loader=self._tracked.position() if is_inside else None,
            ahead=copy.deepcopy(self._base.last) if is_inside else None,
            own=StartConditions.of(self._tracked.loader),
            samples=self.samples,
        )

    def restore(self, position: EpochPosition, random: RandomState, skip_batches: int) -> None:
        """Restore a position and the random state at it; skip data within the epoch.

        Skipped batches count as batches of the epoch, and its last step is kept.
        """
        self._abandon()
        self.epoch, self.consumed = position.epoch, position.consumed
        ahead, batches = position.ahead, iter(())
        if position.loader is not None:
            batches = _keep_last(self._base, self._tracked.restore(position.loader))
            self._base.last = copy.deepcopy(ahead)
        else:
            self._tracked.restore_start(position.own, position.samples)
        restore_random_state(random)
        skip = self._bounded(skip_batches)
        if skip and position.loader is None:
            batches = iter(self._base)
            ahead = next(batches)
        for _ in range(skip):
            ahead = next(batches)
        self.consumed += skip
        if skip:
            restore_random_state(random)
        self.is_restored = True
        self._rest = None
        if self.consumed:
            self._rest = ResumedEpoch(self._shard, copy.deepcopy(ahead), batches)

    def take_rest(self) -> ResumedEpoch | None:
        """Return the rest of the epoch that `restore` has led to; None for the whole of it."""
        self.is_restored = False
        rest, self._rest = self._rest, None
        return rest

    def _bounded(self, batches: int) -> int:
        free = (self._steps - 1 - self.consumed) // self._accumulate * self._accumulate
        return max(0, min(batches, free))

    def _abandon(self) -> None:
        """End the reading of the present epoch."""
        self._tracked.close()
        if any(shard is self._shard for shard in self._shard.gradient_state.dataloader_references):
            self._shard.end()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the trainer's own checkpoints know the position."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""

"""A loop written by hand as the executor sees it: data, snapshots, and how it is rewound."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from stabilizer.agent.control.host_copy import HostCopier, Tree, is_finite, thaw
from stabilizer.agent.control.loaders import LoaderPosition, StatefulLoader, TrackedLoader
from stabilizer.agent.control.snapshots import Snapshot, SnapshotAttempts
from stabilizer.agent.control.torch_state import (
    RandomState,
    capture_module,
    capture_optimizers,
    capture_random_state,
    check_module,
    check_optimizers,
    finite_candidates,
    restore_module,
    restore_optimizers,
    restore_random_state,
    unfit,
)
from stabilizer.agent.probes.sharding import find_layout_obstacle
from stabilizer.errors import ControlError, RestoreError
from stabilizer.protocol.batches import SnapshotInfo

logger = logging.getLogger(__name__)


class StatefulObject(Protocol):
    """Anything with a state that a rollback restores."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: Any) -> object:  # noqa: ANN401  as torch's
        """Take over a state."""


@dataclass(frozen=True)
class LoopPosition:
    """Position in the data of a loop."""

    loaders: tuple[LoaderPosition, ...]
    epoch: int
    batches: int
    """Read in this pass."""


class RewindableData(Protocol):
    """The data of a training, with a position that can be restored."""

    epoch: int
    """Complete passes."""

    @property
    def unsupported(self) -> str | None:
        """Why the data cannot be rewound; None if it can."""

    @property
    def samples(self) -> int:
        """Samples that training has used, over all loaders and ranks."""

    def position(self) -> Any:  # noqa: ANN401  what `restore` takes
        """Return the position, between two batches."""

    def restore(
        self,
        position: Any,  # noqa: ANN401  what `position` returns
        random: RandomState,
        skip_batches: int,
    ) -> None:
        """Restore a position and the random state at it; skip data."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint has kept."""


class LoopData:
    """The loaders of a loop, read in step, pass after pass."""

    def __init__(self, loaders: Sequence[Iterable[Any]], world_size: int) -> None:
        self._tracked = [TrackedLoader(loader, world_size) for loader in loaders]
        self._iterators: list[Iterator[Any]] | None = None
        self._batches = 0
        self.epoch = 0
        self.is_empty = False
        """Whether a whole pass has yielded nothing."""

    @property
    def unsupported(self) -> str | None:
        """Why the data cannot be rewound; None if it can."""
        return next((t.unsupported for t in self._tracked if t.unsupported is not None), None)

    @property
    def samples(self) -> int:
        """Samples read, over all loaders and ranks."""
        return sum(tracked.samples() for tracked in self._tracked)

    @property
    def batch_size(self) -> int | None:
        """Samples per batch over all loaders; None if one has no size."""
        sizes = [getattr(tracked.loader, "batch_size", None) for tracked in self._tracked]
        if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
            return None
        return sum(int(size) for size in sizes if size)

    def begin(self) -> None:
        """Begin a pass unless one is under way."""
        if self._iterators is None:
            for tracked in self._tracked:
                tracked.set_epoch(self.epoch)
            self._iterators = [iter(tracked) for tracked in self._tracked]
            self._batches = 0

    def next(self) -> tuple[Any, ...] | None:
        """Return a batch of every loader; None at the end of a pass."""
        self.begin()
        try:
            batch = tuple([next(iterator) for iterator in self._iterators or ()])
        except StopIteration:
            self.is_empty = self._batches == 0
            self._iterators = None
            self.epoch += 1
            return None
        self._batches += 1
        return batch

    def position(self) -> LoopPosition:
        """Return the position, between two batches."""
        self.begin()
        loaders = tuple(tracked.position() for tracked in self._tracked)
        return LoopPosition(loaders, self.epoch, self._batches)

    def restore(self, position: LoopPosition, random: RandomState, skip_batches: int) -> None:
        """Restore a position and the random state at it; skip data.

        Loaders that can skip by samples do so. Of others, batches are read and discarded, over the
        end of a pass if need be.
        """
        self.epoch, self._batches, self.is_empty = position.epoch, position.batches, False
        by_samples = all(tracked.is_skippable for tracked in self._tracked)
        self._iterators = [
            tracked.restore(
                place, round(skip_batches * tracked.samples_per_batch) if by_samples else 0
            )
            for tracked, place in zip(self._tracked, position.loaders, strict=True)
        ]
        restore_random_state(random)
        if skip_batches and not by_samples:
            self._discard(skip_batches)
            restore_random_state(random)

    def _discard(self, batches: int) -> None:
        while batches and not self.is_empty:
            batches -= self.next() is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, and the states of the loaders that have one."""
        states = [
            copy.deepcopy(tracked.loader.state_dict())
            if isinstance(tracked.loader, StatefulLoader)
            else None
            for tracked in self._tracked
        ]
        return {"epoch": self.epoch, "loaders": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over an epoch, and the states of stateful loaders; others begin a pass anew."""
        self.epoch = int(state["epoch"])
        for tracked, saved in zip(self._tracked, state["loaders"], strict=True):
            if saved is not None and isinstance(tracked.loader, StatefulLoader):
                tracked.loader.load_state_dict(copy.deepcopy(saved))


@dataclass(frozen=True)
class LoopSnapshot:
    """The state of a loop between two steps."""

    tree: Tree
    data: Any
    random: RandomState


class LoopTraining:
    """A loop, between two of its steps."""

    def __init__(  # noqa: PLR0913  the parts of a training that a rewind restores
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        data: RewindableData | None,
        copier: HostCopier,
        *,
        schedulers: Sequence[StatefulObject],
        scaler: Any,  # noqa: ANN401  a torch.amp.GradScaler or None
        stateful: Mapping[str, StatefulObject],
        accumulate: int,
        save: Callable[[str], str] | None,
        obstacle: str | None,
    ) -> None:
        self.data = data
        self.step = 0
        self.bounds: tuple[int | None, int | None] = (None, None)
        """Epochs and steps after which the loop ends; None for no end."""
        self.is_stopping = False
        self._model = model
        self._optimizers = optimizers
        self._copier = copier
        self._schedulers = schedulers
        self._scaler = scaler
        self._stateful = stateful
        self._accumulate = accumulate
        self._save = save
        self._obstacle = obstacle or find_layout_obstacle(model)
        self._attempts = SnapshotAttempts()
        self._exempt = frozenset(
            name for name, buffer in model.named_buffers() if not is_finite([buffer])
        )

    @property
    def epoch(self) -> int:
        """Complete passes through the data."""
        return 0 if self.data is None else self.data.epoch

    @property
    def samples(self) -> int:
        """Position in the data, in samples of the stream."""
        return 0 if self.data is None else self.data.samples

    @property
    def is_ending(self) -> bool:
        """Whether no further step will run."""
        epochs, steps = self.bounds
        is_over = (epochs is not None and self.epoch >= epochs) or (
            steps is not None and self.step >= steps
        )
        return self.is_stopping or is_over

    @property
    def unsupported(self) -> str | None:
        """Why this job cannot be rewound; None if it can."""
        obstacle = self._obstacle or self._attempts.obstacle
        if obstacle is not None or self.data is None:
            return obstacle
        return self.data.unsupported

    def take(self, snapshot_id: str, attempt: int) -> Snapshot | None:
        """Take a snapshot; None if this job cannot be rewound.

        An error while copying costs the snapshot, never the job.
        """
        if self.unsupported is not None or self.data is None:
            return None
        data = self.data
        return self._attempts.take(self.step, lambda: self._copy(data, snapshot_id, attempt))

    def _copy(self, data: RewindableData, snapshot_id: str, attempt: int) -> Snapshot:
        finite = is_finite(finite_candidates(self._model, self._optimizers, self._exempt))
        info = SnapshotInfo(
            id=snapshot_id, attempt=attempt, step=self.step, finite=finite, samples=self.samples
        )
        if not finite:
            return Snapshot(info, None)
        tree = self._copier.freeze(
            {
                "module": capture_module(self._model),
                "optimizers": capture_optimizers(self._optimizers),
                "schedulers": [scheduler.state_dict() for scheduler in self._schedulers],
                "scaler": None if self._scaler is None else self._scaler.state_dict(),
                "stateful": {name: each.state_dict() for name, each in self._stateful.items()},
            }
        )
        info = info.model_copy(update={"num_bytes": self._copier.copied_bytes})
        random = capture_random_state(_devices(self._model))
        return Snapshot(info, LoopSnapshot(tree, data.position(), random))

    def recycle(self, state: LoopSnapshot) -> None:
        """Reclaim the memory of a dropped snapshot."""
        self._copier.recycle(state.tree)

    def check(self, snapshot: Snapshot) -> None:
        """Check that a snapshot can be restored; touches nothing.

        Raises:
            CommandRejectedError: It no longer fits the job.
        """
        state = snapshot.state
        if not isinstance(state, LoopSnapshot):
            raise unfit(f"snapshot {snapshot.info.id} has no state of this job")
        check_module(self._model, state.tree["module"])
        check_optimizers(self._optimizers, state.tree["optimizers"])

    def restore(self, snapshot: Snapshot, skip_steps: int) -> int:
        """Restore a snapshot and skip data.

        Returns:
            Samples skipped.

        Raises:
            RestoreError: The restore failed; the state may be half restored.
        """
        try:
            return self._restore(snapshot, skip_steps)
        except RestoreError:
            raise
        except Exception as error:
            raise RestoreError(
                f"the restore failed, the state may be half restored: {error!r}"
            ) from error

    def _restore(self, snapshot: Snapshot, skip_steps: int) -> int:
        state = snapshot.state
        if not isinstance(state, LoopSnapshot) or self.data is None:
            raise RestoreError(f"snapshot {snapshot.info.id} has no state of this job")
        tree = state.tree
        # Objects of the job first, so that ours overrides what they load.
        for name, each in self._stateful.items():
            each.load_state_dict(thaw(tree["stateful"][name]))
        restore_module(self._model, tree["module"])
        restore_optimizers(self._optimizers, tree["optimizers"])
        for scheduler, frozen in zip(self._schedulers, tree["schedulers"], strict=True):
            scheduler.load_state_dict(thaw(frozen))
        if self._scaler is not None:
            self._scaler.load_state_dict(thaw(tree["scaler"]))
        self.step = snapshot.info.step
        self.data.restore(state.data, state.random, skip_steps * self._accumulate)
        skipped = self.samples - snapshot.info.samples
        if skipped < 0 or (skipped > 0 and not skip_steps):
            raise RestoreError(f"the data is {skipped} samples from where it should be")
        return skipped

    def stop(self) -> None:
        """End the loop at this boundary."""
        self.is_stopping = True

    def save_checkpoint(self, name: str) -> str:
        """Write a checkpoint by the job's own function.

        Raises:
            ControlError: There is none, or it failed.
        """
        if self._save is None:
            raise ControlError("this job has no function to save a checkpoint: save_checkpoint")
        try:
            return str(self._save(name))
        except Exception as error:
            raise ControlError(f"no checkpoint was written: {error!r}") from error

    def state_dict(self) -> dict[str, Any]:
        """Return step and data position, for a checkpoint."""
        return {"step": self.step, "data": None if self.data is None else self.data.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the step and the data position of a checkpoint.

        Raises:
            ControlError: The state is not one of ours.
        """
        try:
            self.step = int(state["step"])
            if self.data is not None and state["data"] is not None:
                self.data.load_state_dict(state["data"])
        except (KeyError, TypeError, ValueError) as error:
            raise ControlError(f"the saved state of the loop cannot be read: {error!r}") from error


def _devices(model: nn.Module) -> list[torch.device]:
    return list({parameter.device for parameter in model.parameters()})

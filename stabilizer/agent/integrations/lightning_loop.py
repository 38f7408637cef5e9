"""A running Lightning fit as the executor sees it: boundaries, snapshots, rewinding in place.

`trainer.fit_loop.epoch_loop.advance` is wrapped on the instance. Our part runs before a batch is
fetched, and only between two optimizer steps, where no gradients are pending. A rewind restores
everything in place, counters included, and the loop continues with the next batch as if it had come
from there: no exception travels through the loops, no restart stage is set, and a snapshot of an
earlier epoch works because the counters say so. At a boundary the rewind comes first, so that no
snapshot is taken of a state that is about to be discarded.

Since this uses Lightning's internals, `find_obstacle` checks them first.
"""
# ruff: noqa: SLF001  rewinding in place needs Lightning's internals; find_obstacle checks them

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from stabilizer.agent.control.host_copy import HostCopier
from stabilizer.agent.control.snapshots import CaughtError, Snapshot, SnapshotAttempts
from stabilizer.agent.control.torch_state import RandomState, capture_random_state, unfit
from stabilizer.agent.integrations.lightning_data import DataPosition, TrainingData
from stabilizer.agent.integrations.lightning_state import TrainerSnapshot, TrainerState
from stabilizer.agent.probes.sharding import GatheredParameters, find_layout_obstacle
from stabilizer.errors import ControlError, RestoreError
from stabilizer.protocol.batches import SnapshotInfo

logger = logging.getLogger(__name__)

_CHECKPOINT_FOLDER: Final = "stabilizer"


@dataclass(frozen=True)
class FitSnapshot:
    """The state of a fit between two steps."""

    trainer: TrainerSnapshot
    data: DataPosition
    random: RandomState


class LightningFit:
    """One trainer in `fit`."""

    def __init__(self, trainer: Trainer, own: Callback, copier: HostCopier) -> None:
        self._trainer = trainer
        self._own = own
        self._copier = copier
        self._data = TrainingData(trainer)
        self._state: TrainerState | None = None
        self._obstacle = find_obstacle(trainer)
        self._wrapped: list[tuple[object, str]] = []
        self._is_stopping = False
        self._attempts = SnapshotAttempts()

    def install(self, on_boundary: Callable[[], None]) -> None:
        """Hook in, before the training data is set up.

        Args:
            on_boundary: Called between two optimizer steps, before a batch is fetched.
        """
        fit_loop = self._trainer.fit_loop
        epoch_loop: Any = fit_loop.epoch_loop
        advance = epoch_loop.advance

        def advance_from_boundary(data_fetcher: Any) -> None:  # noqa: ANN401  Lightning's own
            if self._is_boundary:
                on_boundary()
                if self._is_stopping and fit_loop._can_stop_early:
                    raise StopIteration  # how the loop itself ends an epoch
            advance(data_fetcher)

        self._wrap(epoch_loop, "advance", advance_from_boundary)
        if self._obstacle is None:
            load_states: Any = fit_loop._load_combined_loader_states

            def load_states_and_track() -> None:
                load_states()
                self._data.track()

            # setup_data calls this after the loader is made and before it is iterated.
            self._wrap(fit_loop, "_load_combined_loader_states", load_states_and_track)

    def uninstall(self) -> None:
        """Remove all hooks from the trainer."""
        for owner, name in self._wrapped:
            vars(owner).pop(name, None)
        self._wrapped.clear()
        self._data.untrack()

    def begin(self) -> None:
        """Prepare for snapshots, now that optimizers and data exist."""
        module = self._trainer.lightning_module
        GatheredParameters(module).free()
        self._obstacle = self._obstacle or find_layout_obstacle(module)
        if self._obstacle is None:
            with CaughtError() as reading:
                self._state = TrainerState(self._trainer, self._own, self._copier)
            if reading.error is not None:
                self._obstacle = f"the job's state cannot be read: {reading.error!r}"
        if (reason := self.unsupported) is not None:
            logger.warning("this job cannot be rewound: %s", reason)

    @property
    def unsupported(self) -> str | None:
        """Why this job cannot be rewound; None if it can."""
        if self._obstacle is None and self._state is None:
            return "training has not started"
        return self._obstacle or self._attempts.obstacle or self._data.unsupported

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return int(self._trainer.global_step)

    @property
    def samples(self) -> int:
        """Position in the data, in samples; 0 if unknown."""
        return self._data.samples if self.unsupported is None else 0

    @property
    def is_ending(self) -> bool:
        """Whether no further step will run."""
        trainer = self._trainer
        wants_to_stop = trainer.should_stop and trainer.fit_loop._can_stop_early
        return bool(wants_to_stop or trainer.received_sigterm)

    @property
    def num_gradient_batches(self) -> int:
        """Microbatches per optimizer step."""
        return max(int(self._trainer.accumulate_grad_batches), 1)

    def take(self, snapshot_id: str, attempt: int) -> Snapshot | None:
        """Take a snapshot; None if this job cannot be rewound.

        Waits for the device twice: for the finite check and for the copy. A state that is not
        finite is not copied, since it must never be restored. An error while copying (out of
        memory, a hook of the job that raises) costs the snapshot, never the job.
        """
        if self.unsupported is not None or self._state is None:
            return None
        state = self._state
        return self._attempts.take(self.step, lambda: self._copy(state, snapshot_id, attempt))

    def _copy(self, state: TrainerState, snapshot_id: str, attempt: int) -> Snapshot:
        is_finite = state.is_finite
        data = self._data.position()
        info = SnapshotInfo(
            id=snapshot_id, attempt=attempt, step=self.step, finite=is_finite, samples=data.samples
        )
        if not is_finite:
            return Snapshot(info, None)
        trainer = state.capture()
        random = capture_random_state([self._trainer.strategy.root_device])
        num_bytes = self._copier.copied_bytes
        info = info.model_copy(update={"num_bytes": num_bytes})
        return Snapshot(info, FitSnapshot(trainer, data, random))

    def recycle(self, state: FitSnapshot) -> None:
        """Reclaim the memory of a dropped snapshot."""
        self._copier.recycle(state.trainer.tree)

    def check(self, snapshot: Snapshot) -> None:
        """Check that a snapshot can be restored; touches nothing.

        Raises:
            CommandRejectedError: The snapshot no longer fits the job.
        """
        state = _fit_snapshot(snapshot)
        if self._state is not None:
            self._state.check(state.trainer)

    def restore(self, snapshot: Snapshot, skip_steps: int) -> int:
        """Restore a snapshot and skip data.

        Returns:
            Samples skipped.

        Raises:
            RestoreError: The restore failed; the state may be half restored.
        """
        try:
            return self._restore(_fit_snapshot(snapshot), skip_steps)
        except RestoreError:
            raise
        except Exception as error:
            raise RestoreError(
                f"the restore failed, the state may be half restored: {error!r}"
            ) from error

    def _restore(self, state: FitSnapshot, skip_steps: int) -> int:
        if self._state is None:
            raise RestoreError("training has not started")
        self._state.restore(state.trainer)
        # Data and random state last: hooks and workers draw random numbers while restored.
        skip = self._bound_skip(skip_steps * self.num_gradient_batches, state.data)
        discarded = self._data.restore(state.data, state.random, skip)
        # Discarded batches count as batches of the epoch, so that it ends where it did.
        self._trainer.fit_loop.epoch_loop.batch_progress.increment_by(discarded)
        skipped = self._data.samples - state.data.samples
        if skipped < 0 or (skipped > 0 and not skip_steps):
            raise RestoreError(f"the data is {skipped} samples from where it should be")
        return skipped

    def stop(self) -> None:
        """Stop the fit at this boundary, or once the minimum of epochs or steps is reached."""
        self._is_stopping = True
        self._trainer.should_stop = True

    def save_checkpoint(self, name: str) -> str:
        """Write a Lightning checkpoint under the job's root folder, local or remote. All ranks.

        Raises:
            ControlError: It could not be written.
        """
        safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
        root = str(self._trainer.default_root_dir).rstrip("/")
        path = f"{root}/{_CHECKPOINT_FOLDER}/step={self.step}-{safe}.ckpt"
        with CaughtError() as writing:
            self._trainer.save_checkpoint(path)
        if writing.error is not None:
            self._trainer.strategy.barrier("Trainer.save_checkpoint")  # the other ranks wait there
            raise ControlError(f"no checkpoint was written: {writing.error!r}") from writing.error
        return path

    @property
    def _is_boundary(self) -> bool:
        epoch_loop = self._trainer.fit_loop.epoch_loop
        if epoch_loop.restarting:  # Lightning is still resuming from a checkpoint
            return False
        if self._trainer.strategy.handles_gradient_accumulation:
            return epoch_loop.batch_progress.current.ready % self.num_gradient_batches == 0
        return not epoch_loop._should_accumulate()

    def _bound_skip(self, batches: int, position: DataPosition) -> int:
        """Limit a skip that discards batches, to keep the last step of the epoch."""
        if self._data.skips_by_samples(position):
            return batches
        max_batches = position.counters["max_batches"]
        if max_batches == float("inf"):
            return batches
        used = self._trainer.fit_loop.epoch_loop.batch_progress.current.ready
        step = self.num_gradient_batches
        free = (int(max_batches) - used - 1) // step * step
        return max(min(batches, free), 0)

    def _wrap(self, owner: object, name: str, replacement: Callable[..., None]) -> None:
        setattr(owner, name, replacement)
        self._wrapped.append((owner, name))


def _fit_snapshot(snapshot: Snapshot) -> FitSnapshot:
    if not isinstance(snapshot.state, FitSnapshot):
        raise unfit(f"snapshot {snapshot.info.id} has no state of this job")
    return snapshot.state


_FIT_LOOP: Final = (
    "epoch_loop",
    "epoch_progress",
    "max_batches",
    "_combined_loader",
    "_data_fetcher",
    "_can_stop_early",
    "_last_train_dl_reload_epoch",
    "_load_combined_loader_states",
)
_EPOCH_LOOP: Final = (
    "advance",
    "automatic_optimization",
    "manual_optimization",
    "val_loop",
    "batch_progress",
    "restarting",
    "_batches_that_stepped",
    "_results",
    "_should_accumulate",
    "_skip_next_val",
)
_VAL_LOOP: Final = ("batch_progress", "_has_run", "_results")
_CONNECTOR: Final = (
    "_first_loop_iter",
    "_current_fx",
    "_callback_metrics",
    "_logged_metrics",
    "_progress_bar_metrics",
)
_DEVICES: Final = ("cpu", "cuda")


def find_obstacle(trainer: Trainer) -> str | None:
    """Return why this trainer cannot be rewound, whatever its data; None if it can."""
    return _missing_internals(trainer) or _foreign_strategy(trainer)


def _missing_internals(trainer: Trainer) -> str | None:
    fit_loop: Any = trainer.fit_loop
    if type(fit_loop) is not _FitLoop:
        return f"the fit loop {type(fit_loop).__name__} is not Lightning's own"
    expected = {
        "fit_loop": (fit_loop, _FIT_LOOP),
        "epoch_loop": (getattr(fit_loop, "epoch_loop", None), _EPOCH_LOOP),
        "val_loop": (getattr(getattr(fit_loop, "epoch_loop", None), "val_loop", None), _VAL_LOOP),
        "logger_connector": (getattr(trainer, "_logger_connector", None), _CONNECTOR),
    }
    for name, (owner, fields) in expected.items():
        missing = [field for field in fields if not hasattr(owner, field)]
        if missing:
            return f"this version of Lightning has no {name}.{missing[0]}"
    return None


def _foreign_strategy(trainer: Trainer) -> str | None:
    strategy = trainer.strategy
    name = type(strategy).__name__
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
        return f"rewinding under {name} is not supported: its ranks hold parts of the state"
    if strategy.root_device.type not in _DEVICES:
        return f"rewinding on {strategy.root_device.type} is not supported"
    return None

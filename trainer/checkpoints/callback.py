"""The callback that writes checkpoints and restores the random states of every rank."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, Protocol

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from stabilizer.agent.control.torch_state import (
    RandomState,
    capture_random_state,
    restore_random_state,
)
from trainer.checkpoints.folders import CheckpointError
from trainer.checkpoints.store import CheckpointStore, StoredCheckpoint

KEY: Final = "random_states"

_log = logging.getLogger(__name__)


class RandomStates(Callback):
    """Saves the global generators of python, numpy and torch, and restores them on a resume.

    A checkpoint that is written inside `of_all_ranks` holds the states of all ranks; any other only
    that of this rank, since ranks take copies in memory independently. The states are restored when
    training starts, after everything that draws random numbers during setup.
    """

    def __init__(self) -> None:
        """Start with nothing to restore."""
        self._pending: list[dict[str, Any]] = []
        self._gathers = False

    @contextmanager
    def of_all_ranks(self) -> Iterator[None]:
        """Save the states of all ranks inside this context; all ranks must enter it."""
        self._gathers = True
        try:
            yield
        finally:
            self._gathers = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Drop the state of an earlier fit."""
        self._pending = []

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put this rank's state into the checkpoint, or those of all ranks."""
        own = _to_plain(capture_random_state([trainer.strategy.root_device]))
        states: list[Any] = [own]
        if self._gathers and trainer.world_size > 1:
            states = [None] * trainer.world_size
            dist.all_gather_object(states, own)
        checkpoint[KEY] = states

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the states until training starts."""
        self._pending = list(checkpoint.get(KEY, ()))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore this rank's state if the job is resumed."""
        states, self._pending = self._pending, []
        if not states:
            return
        if len(states) != trainer.world_size:
            _log.warning(
                "the checkpoint is of %d processes and this job has %d: random states are not "
                "restored; training continues, but not bit for bit",
                len(states),
                trainer.world_size,
            )
            return
        restore_random_state(_from_plain(states[trainer.global_rank], trainer.strategy.root_device))


def _to_plain(state: RandomState) -> dict[str, Any]:
    return {
        "python": state.python,
        "numpy": state.numpy,
        "torch": state.torch_host,
        "cuda": [value for _, value in state.cuda],
    }


def _from_plain(state: dict[str, Any], device: torch.device) -> RandomState:
    return RandomState(
        python=state["python"],
        numpy=state["numpy"],
        torch_host=state["torch"],
        cuda=tuple((device, value) for value in state["cuda"]),
    )


FACTS_KEY: Final = "trainer_facts"


class WatchedSnapshot(Protocol):
    """A snapshot of the agent as far as it is needed here."""

    @property
    def step(self) -> int:
        """Completed optimizer steps."""

    @property
    def attempt(self) -> int:
        """In which it was taken."""


class SnapshotHealth(Protocol):
    """What the agent and the collector know about the health of the run."""

    @property
    def attempt(self) -> int:
        """Number of the current attempt in this process."""

    def healthy(self) -> Iterable[WatchedSnapshot]:
        """Return the snapshots that the collector calls healthy."""
        ...


class Checkpoints(Callback):
    """Write a checkpoint every `every` steps and after the last one, and keep the newest.

    When the job is rewound, the checkpoints after that step are abandoned, and one is written with
    the next step. A failed write is logged and costs only that checkpoint; training continues.

    A checkpoint is healthy if all weights and moments are finite and, in a monitored job, the
    collector marks a snapshot healthy that was taken at its step or less than `every` steps later.

    Args:
        store: Where checkpoints are kept; only rank 0 changes it.
        every: Optimizer steps between two checkpoints.
        facts: Stored in each checkpoint, for the resume.
        health: The agent's status, if the job is monitored. None: finite is healthy.
        resumed: The checkpoint that the job resumes from; if it is in the store, later ones
            there are abandoned once it has been loaded.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        every: int,
        facts: dict[str, Any] | None = None,
        health: SnapshotHealth | None = None,
        resumed: Path | None = None,
    ) -> None:
        self._store = store
        self._every = every
        self._facts = facts or {}
        self._health = health
        self._resumed = resumed
        self._attempt = 0
        self._step = 0
        self._saved_step = -1
        self._is_due = False
        self._unjudged: list[tuple[StoredCheckpoint, int]] = []
        self.failures = 0
        """Number of failures to write, mark or remove a checkpoint."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an attempt after the stored ones."""
        self._attempt = 1 + max((c.attempt for c in self._store.all()), default=0)
        self._step = self._saved_step = trainer.global_step
        self._is_due = False
        self._unjudged = []
        trainer.strategy.barrier(
            "Checkpoints.on_train_start"
        )  # all ranks have counted before one writes
        if trainer.is_global_zero:
            self._sweep()
            if self._resumed is not None and self._store.holds(self._resumed):
                with _SurviveErrors(self, "checkpoints cannot be marked"):
                    self._store.abandon(self._step)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Abandon the checkpoints after the step to which the job was rewound."""
        if trainer.global_step >= self._step:
            return
        self._step = trainer.global_step
        self._attempt += 1
        self._is_due = True  # not now: the checkpoint would lack the batch that was just read
        self._unjudged = [(c, a) for c, a in self._unjudged if c.step <= self._step]
        if trainer.is_global_zero:
            with _SurviveErrors(self, "checkpoints cannot be marked"):
                self._store.abandon(self._step)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write a checkpoint if this microbatch completed a step at which one is due."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._judge()
        is_last = self._step == trainer.max_steps
        if self._is_due or is_last or self._step % self._every == 0:
            self.save(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint after the last step, unless it has one."""
        if self._saved_step != trainer.global_step:
            self.save(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the facts into the checkpoint."""
        checkpoint[FACTS_KEY] = {**self._facts, "attempt": self._attempt}

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of the current state; on all ranks, between two steps."""
        path = self._store.place(self._attempt, self._step)
        is_finite = _is_finite(trainer)
        if trainer.is_global_zero:
            self._sweep()
        is_written = False
        with _SurviveErrors(self, f"no checkpoint at step {self._step}", trainer):
            with _all_random_states(trainer):
                trainer.save_checkpoint(path)
            is_written = True
        # All ranks must agree: one that retried alone would wait for the others.
        if not trainer.strategy.reduce_boolean_decision(is_written):
            return
        self._saved_step, self._is_due = self._step, False
        if trainer.is_global_zero:
            # Separate from writing, whose failure needs a barrier: here no rank waits.
            with _SurviveErrors(self, f"the checkpoint at step {self._step} cannot be marked"):
                self._note(StoredCheckpoint(self._attempt, self._step, path), is_finite)

    def _sweep(self) -> None:
        """Free disk space: what a failed write has left must not fail the next one."""
        with _SurviveErrors(self, "the remains of failed writes cannot be removed"):
            self._store.sweep()

    def _note(self, checkpoint: StoredCheckpoint, is_finite: bool) -> None:
        is_healthy = is_finite and self._health is None
        self._store.mark(checkpoint, healthy=is_healthy, finite=is_finite)
        if is_finite and self._health is not None:
            self._unjudged.append((checkpoint, self._health.attempt))
        self._store.tidy()
        _log.info("checkpoint at step %d: %s", checkpoint.step, checkpoint.path)

    def _judge(self) -> None:
        """Mark the checkpoints that have become healthy."""
        if not self._unjudged or self._health is None:
            return
        healthy = [(snapshot.attempt, snapshot.step) for snapshot in self._health.healthy()]
        left = []
        for checkpoint, attempt in self._unjudged:
            span = range(checkpoint.step, checkpoint.step + self._every)
            if not any(number == attempt and step in span for number, step in healthy):
                left.append((checkpoint, attempt))
            elif checkpoint.path.is_dir():
                with _SurviveErrors(self, "a checkpoint cannot be marked"):
                    self._store.mark(checkpoint, healthy=True)
        # Older checkpoints have no snapshot any more by which they could become healthy.
        self._unjudged = [item for item in left if item[0].path.is_dir()]


class _SurviveErrors:
    """Count and log errors of checkpoint writes; training continues."""

    def __init__(self, owner: Checkpoints, what: str, trainer: Trainer | None = None) -> None:
        self._owner = owner
        self._what = what
        self._trainer = trainer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, CheckpointError | OSError):
            return False
        self._owner.failures += 1
        _log.error("%s: %s", self._what, error)
        if self._trainer is not None:
            self._trainer.strategy.barrier("Trainer.save_checkpoint")  # the other ranks wait there
        return True


def _all_random_states(trainer: Trainer) -> AbstractContextManager[None]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    found = (callback for callback in callbacks if isinstance(callback, RandomStates))
    states = next(found, None)
    return nullcontext() if states is None else states.of_all_ranks()


def _is_finite(trainer: Trainer) -> bool:
    """Return whether weights and moments are finite on all ranks; synchronizes the device once."""
    module = trainer.lightning_module
    tensors: list[Tensor] = [*module.parameters()]
    for optimizer in trainer.optimizers:
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
    device = trainer.strategy.root_device
    verdict = torch.ones((), device=device)
    with torch.no_grad():
        for tensor in tensors:
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            if local.is_floating_point():
                verdict *= local.isfinite().all().to(device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(verdict, dist.ReduceOp.MIN)
    return bool(verdict.item())

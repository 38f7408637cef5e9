"""Random states in checkpoints: of every rank, so that a resumed job draws on where it stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from stabilizer.agent.control.torch_state import (
    RandomState,
    capture_random_state,
    restore_random_state,
)

KEY: Final = "random_states"

_log = logging.getLogger(__name__)


class RandomStates(Callback):
    """Saves the global generators of python, numpy and torch, and restores them on a resume.

    A checkpoint holds the state of every rank when it is written inside `of_all_ranks`, on all
    ranks together; otherwise only this rank's, since a copy in memory is every rank's own affair:
    one may take it and another not. The states come back when training starts, behind everything
    that draws while a job is set up.
    """

    def __init__(self) -> None:
        """Have nothing to restore."""
        self._pending: list[dict[str, Any]] = []
        self._gathers = False

    @contextmanager
    def of_all_ranks(self) -> Iterator[None]:
        """Gather what is saved in here from all ranks, which must all come here."""
        self._gathers = True
        try:
            yield
        finally:
            self._gathers = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what an earlier fit has left."""
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
                "restored, so it goes on, but not the same to a bit",
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

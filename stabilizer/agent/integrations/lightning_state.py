"""The state of a Lightning job that a rewind restores, except its data and random state.

It is taken from the live objects, not from a checkpoint: a checkpoint leaves out non-persistent
buffers and metrics, casts optimizer moments, and loads only at the start of a fit. The
checkpoint hooks of modules and callbacks are called too, since they hold user state; what they put
into the checkpoint is restored through their loading hooks. Where ranks hold shards, nothing is
gathered for that: `checkpoint["state_dict"]` has distributed tensors when hooks save, and this
rank's parts, as ordinary tensors on the host, when they load.

Metrics need care: states of torchmetrics are not persistent by default, and Lightning keeps the
running means of an epoch in its loops. Without both, epoch averages after a rewind would count the
abandoned steps.

Not restored: plain attributes that user code never saves, loggers, files, clocks.
"""
# ruff: noqa: SLF001  rewinding in place needs Lightning's internals; find_obstacle checks them

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, Final

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.progress import _BaseProgress
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _ResultCollection,
    _ResultMetric,
)
from torch import nn
from torchmetrics import Metric, MetricCollection

from stabilizer.agent.control.host_copy import HostCopier, Tree, is_finite, thaw
from stabilizer.agent.control.torch_state import (
    capture_module,
    capture_optimizers,
    check_module,
    check_optimizers,
    finite_candidates,
    restore_module,
    restore_optimizers,
    unfit,
)

_HOST: Final = torch.device("cpu")
_LEFT_OUT: Final = (
    "loops",  # restored as live objects
    "optimizer_states",
    "lr_schedulers",
    "hyper_parameters",  # constant
    "datamodule_hyper_parameters",
)
_CHECKPOINT_FIELDS: Final = ("_last_global_step_saved", "_last_checkpoint_saved")
"""Fields of ModelCheckpoint that no state_dict has: they mark a step as saved already."""


@dataclass(frozen=True)
class TrainerSnapshot:
    """Frozen state of a trainer."""

    tree: Tree
    results: list[dict[str, Any]]
    """Lightning's holders of logged values, by reference."""


class TrainerState:
    """Captures and restores the state of one trainer in fit."""

    def __init__(self, trainer: Trainer, own: Callback, copier: HostCopier) -> None:
        self._trainer = trainer
        self._own = own
        self._copier = copier
        self._results = LoggedResults(trainer)
        self._exempt = frozenset(
            name
            for name, buffer in trainer.lightning_module.named_buffers()
            if not is_finite([buffer])
        )

    @property
    def is_finite(self) -> bool:
        """Whether weights, buffers and optimizer state are finite; waits for the device once."""
        trainer = self._trainer
        return is_finite(
            finite_candidates(trainer.lightning_module, trainer.optimizers, self._exempt)
        )

    def capture(self) -> TrainerSnapshot:
        """Copy the state to the host."""
        trainer, module = self._trainer, self._trainer.lightning_module
        tree = {
            "module": capture_module(module, with_gradients=not module.automatic_optimization),
            "optimizers": capture_optimizers(trainer.optimizers),
            "schedulers": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
            "precision": trainer.precision_plugin.state_dict(),
            "metrics": capture_metrics(module),
            "results": self._results.capture(),
            "progress": {name: p.state_dict() for name, p in self._progresses()},
            "loop": self._loop_fields(),
            "checkpoint": self._dump(),
            "checkpointing": [
                {field: getattr(callback, field) for field in _CHECKPOINT_FIELDS}
                for callback in self._model_checkpoints()
            ],
        }
        return TrainerSnapshot(self._copier.freeze(tree), self._results.objects())

    def check(self, snapshot: TrainerSnapshot) -> None:
        """Check that the snapshot still fits the job; touches nothing.

        Raises:
            CommandRejectedError: It does not.
        """
        trainer = self._trainer
        check_module(trainer.lightning_module, snapshot.tree["module"])
        check_optimizers(trainer.optimizers, snapshot.tree["optimizers"])
        schedulers = (len(trainer.lr_scheduler_configs), len(snapshot.tree["schedulers"]))
        if schedulers[0] != schedulers[1]:
            raise unfit(f"the job has {schedulers[0]} schedulers now, and had {schedulers[1]}")

    def restore(self, snapshot: TrainerSnapshot) -> None:
        """Restore everything; user hooks first, so that ours overrides what they load.

        Raises:
            RestoreError: A tensor differs from what was written to it.
        """
        tree, trainer = snapshot.tree, self._trainer
        self._load(thaw(tree["checkpoint"], _HOST))
        restore_module(trainer.lightning_module, tree["module"])
        restore_optimizers(trainer.optimizers, tree["optimizers"])
        for config, frozen in zip(trainer.lr_scheduler_configs, tree["schedulers"], strict=True):
            config.scheduler.load_state_dict(thaw(frozen))
        if tree["precision"]:
            trainer.precision_plugin.load_state_dict(thaw(tree["precision"]))
        restore_metrics(trainer.lightning_module, tree["metrics"])
        self._results.restore(tree["results"], snapshot.results)
        for name, progress in self._progresses():
            progress.load_state_dict(thaw(tree["progress"][name]))
        self._set_loop_fields(tree["loop"])
        for callback, fields in zip(self._model_checkpoints(), tree["checkpointing"], strict=True):
            for field, value in fields.items():
                setattr(callback, field, value)
            _forget_removed_files(callback)

    def _progresses(self) -> Iterator[tuple[str, _BaseProgress]]:
        fit_loop = self._trainer.fit_loop
        epoch_loop = fit_loop.epoch_loop
        loops: dict[str, _Loop] = {
            "fit": fit_loop,
            "epoch": epoch_loop,
            "automatic": epoch_loop.automatic_optimization,
            "manual": epoch_loop.manual_optimization,
            "validation": epoch_loop.val_loop,
        }
        for name, loop in loops.items():
            for field, value in vars(loop).items():
                if isinstance(value, _BaseProgress):
                    yield f"{name}.{field}", value

    def _loop_fields(self) -> dict[str, Any]:
        trainer, epoch_loop = self._trainer, self._trainer.fit_loop.epoch_loop
        return {
            "batches_that_stepped": epoch_loop._batches_that_stepped,
            "skip_next_val": epoch_loop._skip_next_val,
            "val_has_run": epoch_loop.val_loop._has_run,
            "should_stop": trainer.should_stop,
            "accumulate": trainer.accumulate_grad_batches,
        }

    def _set_loop_fields(self, fields: Mapping[str, Any]) -> None:
        trainer, epoch_loop = self._trainer, self._trainer.fit_loop.epoch_loop
        epoch_loop._batches_that_stepped = fields["batches_that_stepped"]
        epoch_loop._skip_next_val = fields["skip_next_val"]
        epoch_loop.val_loop._has_run = fields["val_has_run"]
        trainer.should_stop = fields["should_stop"]
        trainer.accumulate_grad_batches = fields["accumulate"]

    def _dump(self) -> dict[str, Any]:
        with _without_gathering(self._trainer):
            checkpoint = self._trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        states = checkpoint.get("callbacks", {})
        for callback in self._callbacks:
            # Our own state outlives a rewind, and so does elapsed time.
            if callback is self._own or isinstance(callback, Timer):
                states.pop(callback.state_key, None)
        return {key: value for key, value in checkpoint.items() if key not in _LEFT_OUT}

    def _load(self, checkpoint: dict[str, Any]) -> None:
        trainer = self._trainer
        call._call_lightning_module_hook(trainer, "on_load_checkpoint", checkpoint)
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is not None and type(datamodule).__qualname__ in checkpoint:
            state = checkpoint[type(datamodule).__qualname__]
            call._call_lightning_datamodule_hook(trainer, "load_state_dict", state)
        call._call_callbacks_on_load_checkpoint(trainer, checkpoint)
        call._call_callbacks_load_state_dict(trainer, checkpoint)

    @property
    def _callbacks(self) -> list[Callback]:
        return list(getattr(self._trainer, "callbacks", ()))  # a connector sets it, untyped

    def _model_checkpoints(self) -> list[ModelCheckpoint]:
        return [c for c in self._callbacks if isinstance(c, ModelCheckpoint)]


@contextmanager
def _without_gathering(trainer: Trainer) -> Iterator[None]:
    """Let the strategy return the state as it is: some gather it from all ranks, or copy it."""
    strategy: Any = trainer.strategy
    strategy.lightning_module_state_dict = trainer.lightning_module.state_dict
    strategy.optimizer_state = methodcaller("state_dict")
    try:
        yield
    finally:
        del strategy.lightning_module_state_dict, strategy.optimizer_state


def _forget_removed_files(callback: ModelCheckpoint) -> None:
    """Forget best checkpoints whose files the abandoned steps have removed."""
    exists = callback._fs.exists
    callback.best_k_models = {
        path: score for path, score in callback.best_k_models.items() if exists(path)
    }
    if callback.best_model_path and not exists(callback.best_model_path):
        scores = callback.best_k_models
        pick, worst = (min, max) if callback.mode == "min" else (max, min)
        best = pick(scores, key=lambda path: scores[path]) if scores else ""
        callback.best_model_path = best
        callback.best_model_score = scores.get(best)
        callback.kth_best_model_path = (
            worst(scores, key=lambda path: scores[path]) if scores else ""
        )


_METRIC_FIELDS = ("_update_count", "_computed", "_forward_cache", "_is_synced", "_cache")
_RESULT_FIELDS = (
    "value",
    "cumulated_batch_size",
    "_forward_cache",
    "_computed",
    "_update_count",
    "has_reset",
)
_CONNECTOR_FIELDS = (
    "_first_loop_iter",
    "_current_fx",
    "_callback_metrics",
    "_logged_metrics",
    "_progress_bar_metrics",
)


def capture_metrics(module: nn.Module) -> Tree:
    """Return the live states of all torchmetrics in the module."""
    return {
        name: {field: getattr(metric, field) for field in _fields(metric)}
        for name, metric in _metrics(module)
    }


def restore_metrics(module: nn.Module, frozen: Mapping[str, Any]) -> None:
    """Restore the states of all torchmetrics in the module."""
    states = thaw(frozen)
    for name, metric in _metrics(module):
        for field, value in states.get(name, {}).items():
            setattr(metric, field, value)
    for child in module.modules():
        if isinstance(child, MetricCollection) and child._groups_checked:
            child._state_is_copy = False  # members of a group share its first member's states again
            child._compute_groups_create_state_ref(copy=False)


def _metrics(module: nn.Module) -> Iterator[tuple[str, Metric]]:
    return ((n, child) for n, child in module.named_modules() if isinstance(child, Metric))


def _fields(metric: Metric) -> Iterator[str]:
    yield from metric._defaults
    yield from (field for field in _METRIC_FIELDS if hasattr(metric, field))


class LoggedResults:
    """Values accumulated by `self.log`, and those last sent to loggers and callbacks."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def capture(self) -> Tree:
        """Return the live values."""
        connector = self._trainer._logger_connector
        return {
            "collections": [
                {key: _result_values(result) for key, result in collection.items()}
                for collection in self._collections()
            ],
            "connector": {field: getattr(connector, field) for field in _CONNECTOR_FIELDS},
        }

    def objects(self) -> list[dict[str, _ResultMetric]]:
        """Return the objects that hold the values and know how to reduce them."""
        return [dict(collection) for collection in self._collections()]

    def restore(self, frozen: Mapping[str, Any], objects: list[dict[str, _ResultMetric]]) -> None:
        """Restore objects and values."""
        values = thaw(frozen)
        for collection, holders, state in zip(
            self._collections(), objects, values["collections"], strict=True
        ):
            collection.clear()
            collection.update(holders)
            collection.batch = collection.batch_size = collection.dataloader_idx = None
            for key, fields in state.items():
                for field, value in fields.items():
                    setattr(collection[key], field, value)
        for field, value in values["connector"].items():
            setattr(self._trainer._logger_connector, field, value)

    def _collections(self) -> list[_ResultCollection]:
        epoch_loop = self._trainer.fit_loop.epoch_loop
        return [epoch_loop._results, epoch_loop.val_loop._results]


def _result_values(result: _ResultMetric) -> dict[str, Any]:
    return {
        field: getattr(result, field)
        for field in _RESULT_FIELDS
        # A logged torchmetrics object is its own value: a reference, not a state.
        if hasattr(result, field) and (field != "value" or result.is_tensor)
    }

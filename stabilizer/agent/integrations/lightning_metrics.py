"""Metrics of a Lightning job: torchmetrics inside the module, and what `self.log` accumulates.

Neither is in a `state_dict`: metric states are not persistent by default, and Lightning keeps the
running means of an epoch in its loops. Without them, epoch averages after a rewind would count the
abandoned steps.
"""
# ruff: noqa: SLF001  going back in place needs Lightning's internals; lightning_support checks them

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _ResultCollection,
    _ResultMetric,
)
from torch import nn
from torchmetrics import Metric, MetricCollection

from stabilizer.agent.control.host_copy import Tree, thaw

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
    """States of all torchmetrics in the module, live."""
    return {
        name: {field: getattr(metric, field) for field in _fields(metric)}
        for name, metric in _metrics(module)
    }


def restore_metrics(module: nn.Module, frozen: Mapping[str, Any]) -> None:
    """Put the states back."""
    states = thaw(frozen)
    for name, metric in _metrics(module):
        for field, value in states.get(name, {}).items():
            setattr(metric, field, value)
    for child in module.modules():
        if isinstance(child, MetricCollection) and child._groups_checked:
            child._state_is_copy = False  # members of a group share the states of its first again
            child._compute_groups_create_state_ref(copy=False)


def _metrics(module: nn.Module) -> Iterator[tuple[str, Metric]]:
    return ((n, child) for n, child in module.named_modules() if isinstance(child, Metric))


def _fields(metric: Metric) -> Iterator[str]:
    yield from metric._defaults
    yield from (field for field in _METRIC_FIELDS if hasattr(metric, field))


class LoggedResults:
    """What `self.log` has accumulated, and what loggers and callbacks were last told."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def capture(self) -> Tree:
        """The values, live."""
        connector = self._trainer._logger_connector
        return {
            "collections": [
                {key: _result_values(result) for key, result in collection.items()}
                for collection in self._collections()
            ],
            "connector": {field: getattr(connector, field) for field in _CONNECTOR_FIELDS},
        }

    def objects(self) -> list[dict[str, _ResultMetric]]:
        """The holders of the values, to be put back as they are: they know how to reduce."""
        return [dict(collection) for collection in self._collections()]

    def restore(self, frozen: Mapping[str, Any], objects: list[dict[str, _ResultMetric]]) -> None:
        """Put holders and values back."""
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
        # The value of a logged torchmetrics object is that object: a reference, not a state.
        if hasattr(result, field) and (field != "value" or result.is_tensor)
    }

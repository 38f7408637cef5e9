"""Whether a trainer can be rewound: Lightning's internals are used, so they are looked at first."""

from __future__ import annotations

from typing import Any, Final

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

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
    """Why this trainer cannot be rewound, whatever its data; None if it can."""
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
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        return f"rewinding under {name} is not supported: its ranks hold parts of the state"
    if strategy.root_device.type not in _DEVICES:
        return f"rewinding on {strategy.root_device.type} is not supported"
    return None

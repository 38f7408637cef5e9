"""Maps the columns of a log to series, with the labels that the agent would send.

The project's own logs name columns `metric[/qualifier][/layerN]`: `grad_norm/fc2/layer3` is the
gradient norm of a module of kind fc2 in layer 3, and never the global norm. Other tools' names for
the loss, the gradient norm and the learning rate are recognised; every other column is a series of
the user's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from stabilizer.protocol.metrics import Kind, Metric, Tower
from stabilizer.protocol.series import SeriesKey

_LOSSES: Final = frozenset({"loss", "loss_total", "z_loss"})
_MODULE_METRICS: Final = frozenset(
    {"activation_rms", "activation_max_abs", "grad_norm", "param_norm", "weight_norm"}
    | {"update_ratio", "adam_rms", "nonfinite", "gate"}
)
_KINDS: Final = {
    **{kind.value: kind.value for kind in Kind},
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "attn": "attention",
}
_EVALUATION: Final = frozenset({"eval", "val", "valid", "validation", "test"})
_WRAPPERS: Final = frozenset(
    {"train", "training", "optim", "optimizer", "metrics", "trainer", "loss_metrics", "model"}
    | {"lm_loss_training"}
)
"""Prefixes under which tools group their training metrics."""
_MEAN_LOSS: Final = ["train", "train_loss"]
"""Written by transformers at the end of a training: the mean over the run."""
_GLOBAL: Final = frozenset({"global", "total", "all"})

_ALIASES: Final = {
    alias: metric
    for metric, aliases in {
        "loss": "train_loss training_loss lm_loss loss/train loss/training train_loss_step "
        "global_avg_loss ce_loss cross_entropy cross_entropy_loss nll_loss",
        "grad_norm": "gradient_norm grad_norms global_grad_norm total_grad_norm gnorm total_norm "
        "grad/norm gradient/norm grad_norm/global norm/grad norm/global_grad",
        "lr": "learning_rate lr/learning_rate lr_adamw lr_adam lr_sgd learning_rates",
        "z_loss": "zloss z_loss/train aux_z_loss",
        "loss_scale": "lossscale loss_scaler grad_scale scale/loss",
        "step_skipped": "skipped_iterations number_of_skipped_iterations skipped_iter",
        "step_seconds": "seconds_per_step step_time time_per_step iteration_time",
    }.items()
    for alias in aliases.split()
}
_LAYER = re.compile(r"layers?[._]?(\d+)\Z")
_NOT_WORD = re.compile(r"[^a-z0-9]+")
_MAX_NAME: Final = 120
_MAX_LABEL: Final = 400


@lru_cache(maxsize=100_000)
def series_of(column: str) -> SeriesKey:
    """Name the series of a column."""
    if column.endswith("}"):
        try:
            return SeriesKey.parse(column)
        except ValueError:
            pass
    raw = [part for part in column.split("/") if part.strip()] or ["unnamed"]
    parts = [_snake(part) for part in raw]
    if parts == _MEAN_LOSS:
        return _plain(parts)
    layer, raw, parts = _take_layer(raw, parts)
    while len(parts) > 1 and "/".join(parts) not in _ALIASES and parts[0] in _WRAPPERS:
        raw, parts = raw[1:], parts[1:]
    whole = "/".join(parts)
    if whole in _ALIASES:
        raw, parts = raw[:1], [_ALIASES[whole]]
    parts[0] = _ALIASES.get(parts[0], parts[0])
    return _with_labels(parts, raw[1:], layer)


def _snake(part: str) -> str:
    name = _NOT_WORD.sub("_", part.lower()).strip("_") or "unnamed"
    return name if name[0].isalpha() else f"m_{name}"


def _take_layer(raw: list[str], parts: list[str]) -> tuple[str | None, list[str], list[str]]:
    """Take the part that names the layer out of a column's parts."""
    for index in range(len(raw) - 1, 0, -1):
        match = _LAYER.match(raw[index])
        if match is not None:
            return (
                str(int(match[1])),
                raw[:index] + raw[index + 1 :],
                [
                    *parts[:index],
                    *parts[index + 1 :],
                ],
            )
    return None, raw, parts


def _with_labels(parts: Sequence[str], qualifiers: Sequence[str], layer: str | None) -> SeriesKey:
    metric = parts[0]
    qualifier = "/".join(qualifiers)[:_MAX_LABEL]
    if qualifier in _GLOBAL and layer is None and metric in _MODULE_METRICS | _LOSSES:
        qualifier = ""
    if metric in _LOSSES and layer is None:
        if qualifier in _EVALUATION:
            return _plain([qualifier, metric])
        return SeriesKey(metric=metric, labels={"source": qualifier} if qualifier else {})
    if metric == Metric.LR and layer is None:
        return SeriesKey(metric=metric, labels={"group": qualifier or "0"})
    if metric.startswith("attention_") and (qualifier or layer is not None):
        return _of_module(metric, Kind.ATTENTION.value, layer, head=qualifier)
    if (metric in _MODULE_METRICS and qualifier) or layer is not None:
        return _of_module(metric, _KINDS.get(qualifier, qualifier), layer)
    return _plain(parts)


def _plain(parts: Sequence[str]) -> SeriesKey:
    return SeriesKey(metric="_".join(parts)[:_MAX_NAME])


def _of_module(metric: str, kind: str, layer: str | None, head: str = "") -> SeriesKey:
    """Return a series of a module, labelled as the agent labels a module's series."""
    name = kind or "block"
    labels = {
        "module": name if layer is None else f"layers.{layer}.{name}",
        "tower": Tower.LANGUAGE.value,
    }
    labels |= {"kind": kind} if kind else {}
    labels |= {} if layer is None else {"layer": layer}
    labels |= {"head": head} if head else {}
    return SeriesKey(metric=metric, labels=labels)

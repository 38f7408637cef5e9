"""What a rule file says that would do nothing: no mistake, but hardly what its author means."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from stabilizer.protocol.decisions import Severity
from stabilizer.protocol.metrics import LABEL_NAMES, Metric
from stabilizer.rules.loader import RuleFile
from stabilizer.rules.policy.signals import RANKS
from stabilizer.rules.risk.model import METRIC as RISK
from stabilizer.rules.spec import (
    ALL,
    ANY_VALUE,
    GroupsSpec,
    LayerSpec,
    PolicySpec,
    RuleSpec,
    SelectSpec,
)

MEASURED: Final = frozenset(Metric) | {
    "activation_max_abs",
    "adam_rms",
    "data_wait_seconds",
    "memory_bytes",
    "param_norm",
    RISK,
    "tokens_per_second",
    "update_ratio",
}
"""Metrics with a fixed meaning; a job may log others."""
HEADS: Final = frozenset({"min", "mean"})


def warnings_of(file: RuleFile) -> list[str]:
    """Return one line for everything that can never have an effect."""
    return [*_rule_warnings(file.rules), *_policy_warnings(file.policy, file.rules)]


def _rule_warnings(rules: tuple[RuleSpec, ...]) -> Iterator[str]:
    used = {name for rule in rules if rule.when is not None for name in rule.when.rules()}
    for rule in rules:
        if rule.select is not None:
            yield from (f"rule {rule.name}: {text}" for text in _select_warnings(rule.select))
            yield from _quorum_warnings(rule, rule.select)
        if rule.ratio is not None:
            over = _select_warnings(rule.ratio.over)
            yield from (f"rule {rule.name}: ratio.over: {text}" for text in over)
            yield from (
                f"rule {rule.name}: ratio.same: {label!r} is not a label of what it selects"
                for label in rule.ratio.same
                if label not in LABEL_NAMES and set(rule.ratio.over.metric) <= MEASURED
            )
        if rule.signal and rule.name not in used:
            yield f"rule {rule.name}: it is a signal, and no condition refers to it"


def _select_warnings(select: SelectSpec) -> Iterator[str]:
    for metric in select.metric:
        if metric not in MEASURED:
            yield f"the agent does not measure {metric!r}; the job must log it"
    for label, values in select.labels.items():
        if label not in LABEL_NAMES and all(metric in MEASURED for metric in select.metric):
            yield f"{label!r} is not a label of {', '.join(select.metric)}"
        if label == "head" and select.metric == (Metric.ATTENTION_ENTROPY,):
            for head in sorted({v for v in values if v is not None} - HEADS - {"*"}):
                yield f"head {head!r} is not measured; allowed: {', '.join(sorted(HEADS))}"


def _quorum_warnings(rule: RuleSpec, select: SelectSpec) -> Iterator[str]:
    if rule.by is not None and select.labels.get(rule.by) == (None,):
        yield f"rule {rule.name}: by {rule.by}: it selects series without that label only"
    elif rule.by not in {None, *LABEL_NAMES} and set(select.metric) <= MEASURED:
        yield f"rule {rule.name}: by: {rule.by!r} is not a label of {', '.join(select.metric)}"
    elif rule.groups is not None and _most_groups(rule, select) < _fewest_needed(rule.groups):
        yield f"rule {rule.name}: groups: it selects {_most_groups(rule, select)} at most"
    layer = select.layer or LayerSpec(bottom=1.0)
    if layer.index is None or rule.quorum is None or len(select.metric) > 1:
        return
    if rule.by is not None:
        return
    kinds = select.labels.get("kind", ("*",))
    if "*" not in kinds and rule.quorum > len(layer.index) * len(kinds):
        yield (
            f"rule {rule.name}: a quorum of {rule.quorum:g} is more than the "
            f"{len(layer.index) * len(kinds)} series it selects in a model of one tower"
        )


def _most_groups(rule: RuleSpec, select: SelectSpec) -> float:
    """Return how many groups a rule can have; infinity if any number."""
    if rule.by == "layer" and select.layer is not None and select.layer.index is not None:
        return len(set(select.layer.index))
    values = select.labels.get(rule.by or "", (ANY_VALUE,))
    return math.inf if ANY_VALUE in values else len({v for v in values if v is not None})


def _fewest_needed(groups: GroupsSpec) -> float:
    """Return how many groups must be judged for an alert at all."""
    if groups.least == ALL:
        return 2
    least = max(1.0, float(groups.least))
    return least if groups.most is None else max(least, 1) + 1


def _policy_warnings(policy: PolicySpec, rules: tuple[RuleSpec, ...]) -> Iterator[str]:
    loud = [rule for rule in rules if not rule.signal and rule.clock is None]
    silent = {rule.name: "is a signal and raises no alert" for rule in rules if rule.signal}
    silent |= {rule.name: "is on the clock and opens no incident" for rule in rules if rule.clock}
    worst = max((RANKS[rule.severity] for rule in loud), default=-1)
    for part, items in policy.act_on.items.items():
        for item in (one for several in items for one in several.split("|")):
            kind, _, name = item.partition(":")
            if kind == "rule" and name in silent:
                yield f"policy.act_on.{part}: rule {name} {silent[name]}"
            if kind == "severity" and RANKS[Severity(name)] > worst:
                yield f"policy.act_on.{part}: no rule has severity {name} or worse"
    budget = policy.guards.budget
    rungs = [*policy.ladder, *(rule.remedy for rule in rules if rule.remedy is not None)]
    if budget.rollback == 0 and any(rung.rollback is not None for rung in rungs):
        yield "policy.guards.budget.rollback is 0: the ladder's rollbacks are never made"
    if budget.reduce_lr == 0 and any(rung.reduce_lr is not None for rung in rungs):
        yield "policy.guards.budget.reduce_lr is 0: the ladder's cuts are never made"
    if policy.act_on.after_wait and policy.wait > budget.per_steps:
        yield f"policy.wait of {policy.wait} steps is longer than the budget's {budget.per_steps}"

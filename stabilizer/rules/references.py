"""Names within a rule file that stand twice, or for nothing.

Checked on the plain data, not on the models: so they are found together with all other mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from pydantic import JsonValue

from stabilizer.errors import RuleDefinitionError
from stabilizer.protocol.decisions import Severity
from stabilizer.rules.spec import ANY_VALUE, CLOSED_LABELS
from stabilizer.rules.yaml_source import Source


def check_references(source: Source) -> list[RuleDefinitionError]:
    """Find names that stand twice, and names that stand for nothing, in whatever could be read."""
    data = _mapping(source.data)
    rules = [_mapping(rule) for rule in _list(data.get("rules"))]
    act_on = _mapping(_mapping(data.get("policy")).get("act_on"))
    names = {rule.get("name") for rule in rules if isinstance(rule.get("name"), str)}
    return list(
        chain(
            _duplicate_names(source, rules),
            _unknown_labels(source, rules),
            _unknown_items(source, act_on, names),
        )
    )


def _mapping(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _duplicate_names(
    source: Source, rules: list[dict[str, JsonValue]]
) -> Iterator[RuleDefinitionError]:
    first: dict[str, int] = {}
    for index, rule in enumerate(rules):
        name = rule.get("name")
        if not isinstance(name, str):
            continue
        if name in first:
            line = source.lines.get(("rules", first[name], "name"), 1)
            message = f"{name!r} is also the name of the rule on line {line}"
            yield source.error(message, ("rules", index, "name"))
        first.setdefault(name, index)


def _unknown_labels(
    source: Source, rules: list[dict[str, JsonValue]]
) -> Iterator[RuleDefinitionError]:
    for index, rule in enumerate(rules):
        select = _mapping(rule.get("select"))
        for label, allowed in CLOSED_LABELS.items():
            given = select.get(label)
            for value in given if isinstance(given, list) else [given]:
                if isinstance(value, str) and value != ANY_VALUE and value not in allowed:
                    message = f"is {value!r}; allowed: {', '.join(sorted(allowed))}, null, *"
                    yield source.error(message, ("rules", index, "select", label))


def _unknown_items(
    source: Source, act_on: dict[str, JsonValue], names: set[JsonValue]
) -> Iterator[RuleDefinitionError]:
    for part, items in act_on.items():
        alternatives = [
            (index, alternative)
            for index, item in enumerate(_list(items))
            for alternative in str(item).split("|")
        ]
        for index, item in alternatives:
            kind, _, name = item.partition(":")
            where = ("policy", "act_on", part, index)
            if kind == "rule" and name not in names:
                yield source.error(f"there is no rule {name!r}", where)
            if kind == "severity" and name not in set(Severity):
                message = f"there is no severity {name!r}; allowed: {', '.join(Severity)}"
                yield source.error(message, where)

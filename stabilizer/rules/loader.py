"""Rule files: read, checked as a whole, hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.resources import files

from pydantic import JsonValue, ValidationError

from stabilizer.errors import RuleDefinitionError, RuleFileError
from stabilizer.protocol.decisions import Severity
from stabilizer.rules.spec import ANY_VALUE, CLOSED_LABELS, PolicySpec, RuleFileSpec, RuleSpec
from stabilizer.yaml_lines import Path, YamlMistake, YamlSource, parse_yaml


@dataclass(frozen=True)
class RuleFile:
    """A checked rule file."""

    content: RuleFileSpec
    text: str
    """As written, comments included."""
    file: str

    @property
    def rules(self) -> tuple[RuleSpec, ...]:
        """The rules, in the order of the file."""
        return self.content.rules

    @property
    def policy(self) -> PolicySpec:
        """The policy."""
        return self.content.policy

    @cached_property
    def hash(self) -> str:
        """Hash of the parsed content, 32 hexadecimal digits; layout and comments do not matter."""
        content = self.content.model_dump(mode="json", by_alias=True)
        canonical = json.dumps(content, sort_keys=True, allow_nan=False)
        return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=16)  # the jobs of a sweep send the same file
def load_rules(text: str, file: str = "<string>") -> RuleFile:
    """Read and check a rule file.

    Args:
        text: YAML.
        file: Name for messages.

    Raises:
        RuleFileError: Every mistake of the file, each with its line and field.
    """
    source = parse_yaml(text)
    mistakes = list(source.mistakes)
    content = None
    if source.data is None and not mistakes:
        mistakes.append(
            YamlMistake(1, "(file)", "the file is empty; allowed: a mapping with rules and policy")
        )
    elif source.data is not None:
        try:
            content = RuleFileSpec.model_validate(source.data)
        except ValidationError as error:
            mistakes += _schema_mistakes(source, error)
        mistakes += _reference_mistakes(source)
    if mistakes or content is None:
        mistakes.sort(key=lambda mistake: (mistake.line, mistake.field))
        errors = [
            RuleDefinitionError(message, file=file, line=line, field=where)
            for line, where, message in mistakes
        ]
        raise RuleFileError(f"{file}: {len(errors)} mistakes in the rule file", errors)
    return RuleFile(content, text, file)


@cache
def default_rules() -> RuleFile:
    """Load the rules that ship with the package."""
    text = files("stabilizer.rules").joinpath("default.yaml").read_text(encoding="utf-8")
    return load_rules(text, "default.yaml")


def _schema_mistakes(source: YamlSource, error: ValidationError) -> Iterator[YamlMistake]:
    for detail in error.errors(include_url=False, include_context=False):
        # tags of unions, such as (span), are no fields
        location: Path = tuple(part for part in detail["loc"] if not str(part).startswith("("))
        kind, value = detail["type"], detail["input"]
        if kind == "missing":
            yield source.mistake("is missing", location)
        elif kind == "extra_forbidden":
            yield source.mistake("is not a field here", location)
        else:
            if location and location[-1] == "[key]":
                location = location[:-1]
            message = detail["msg"].removeprefix("Value error, ")
            if not isinstance(value, dict | list):
                message = f"is {str(value)[:80]!r}: {message}"
            yield source.mistake(message, location)


# References are checked on the plain data, not on the models, so that they are reported together
# with all other mistakes.


def _reference_mistakes(source: YamlSource) -> Iterator[YamlMistake]:
    """Find duplicate rule names, and names that refer to nothing."""
    data = _mapping(source.data)
    rules = [_mapping(rule) for rule in _list(data.get("rules"))]
    act_on = _mapping(_mapping(data.get("policy")).get("act_on"))
    names = {rule.get("name") for rule in rules if isinstance(rule.get("name"), str)}
    yield from _missing_parts(source, rules)
    yield from _duplicate_names(source, rules)
    yield from _unknown_labels(source, rules)
    yield from _unknown_items(source, act_on, names)
    yield from _unknown_conditions(source, rules)


def _mapping(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _missing_parts(source: YamlSource, rules: list[dict[str, JsonValue]]) -> Iterator[YamlMistake]:
    for index, rule in enumerate(rules):
        for field in ("select", "detect"):
            others = rule.get("when"), rule.get("clock")
            if others == (None, None) and rule.get(field) is None:
                yield source.mistake("is missing", ("rules", index, field))


def _duplicate_names(
    source: YamlSource, rules: list[dict[str, JsonValue]]
) -> Iterator[YamlMistake]:
    first: dict[str, int] = {}
    for index, rule in enumerate(rules):
        name = rule.get("name")
        if not isinstance(name, str):
            continue
        if name in first:
            line = source.lines.get(("rules", first[name], "name"), 1)
            message = f"{name!r} is also the name of the rule on line {line}"
            yield source.mistake(message, ("rules", index, "name"))
        first.setdefault(name, index)


def _unknown_labels(source: YamlSource, rules: list[dict[str, JsonValue]]) -> Iterator[YamlMistake]:
    for index, rule in enumerate(rules):
        for where in (("select",), ("ratio", "over")):
            select: JsonValue = rule
            for part in where:
                select = _mapping(select).get(part)
            for label, allowed in CLOSED_LABELS.items():
                given = _mapping(select).get(label)
                for value in given if isinstance(given, list) else [given]:
                    if isinstance(value, str) and value != ANY_VALUE and value not in allowed:
                        message = f"is {value!r}; allowed: {', '.join(sorted(allowed))}, null, *"
                        yield source.mistake(message, ("rules", index, *where, label))


def _unknown_conditions(
    source: YamlSource, rules: list[dict[str, JsonValue]]
) -> Iterator[YamlMistake]:
    """Find conditions on rules that are not above: there are no circles then."""
    above: set[str] = set()
    timed = {rule.get("name") for rule in rules if rule.get("clock") is not None}
    for index, rule in enumerate(rules):
        for other, where in _names_in(rule.get("when"), ("rules", index, "when")):
            if other in timed:
                message = f"{other!r} is a rule on the clock; conditions see steps only"
                yield source.mistake(message, where)
            elif other not in above:
                yield source.mistake(f"there is no rule {other!r} above this one", where)
        name = rule.get("name")
        if isinstance(name, str):
            above.add(name)


def _names_in(condition: JsonValue, where: Path) -> Iterator[tuple[str, Path]]:
    fields = _mapping(condition)
    for field in ("rule", "ready"):
        name = fields.get(field)
        if isinstance(name, str):
            yield name, (*where, field)
    for field in ("first", "second"):
        name = _mapping(fields.get("then")).get(field)
        if isinstance(name, str):
            yield name, (*where, "then", field)
    for field in ("all", "any"):
        for index, part in enumerate(_list(fields.get(field))):
            yield from _names_in(part, (*where, field, index))
    yield from _names_in(fields["not"], (*where, "not")) if "not" in fields else ()


def _unknown_items(
    source: YamlSource, act_on: dict[str, JsonValue], names: set[JsonValue]
) -> Iterator[YamlMistake]:
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
                yield source.mistake(f"there is no rule {name!r}", where)
            if kind == "severity" and name not in set(Severity):
                message = f"there is no severity {name!r}; allowed: {', '.join(Severity)}"
                yield source.mistake(message, where)

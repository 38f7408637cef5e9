"""Rule files: read, checked as a whole, hashed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

from pydantic import JsonValue, ValidationError

from stabilizer.errors import RuleFileError
from stabilizer.rules.policy_spec import PolicySpec
from stabilizer.rules.references import check_references
from stabilizer.rules.spec import RuleFileSpec, RuleSpec
from stabilizer.rules.yaml_source import Path, parse_yaml


@dataclass(frozen=True)
class RuleFile:
    """A rule file that has been checked."""

    content: RuleFileSpec
    text: str
    """As it was written, comments included."""
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


def load_rules(text: str, file: str = "<string>") -> RuleFile:
    """Read and check a rule file.

    Args:
        text: YAML.
        file: Name for messages.

    Raises:
        RuleFileError: Every mistake of the file, each with its line and field.
    """
    source = parse_yaml(text, file)
    errors = list(source.errors)
    content = None
    if source.data is not None or not errors:
        try:
            content = RuleFileSpec.model_validate(source.data)
        except ValidationError as error:
            errors += [source.error(*_explain(detail)) for detail in _details(error)]
        errors += check_references(source)
    if errors or content is None:
        errors.sort(key=lambda error: (error.line, error.field))
        raise RuleFileError(f"{file}: {len(errors)} mistakes in the rule file", errors)
    return RuleFile(content, text, file)


@cache
def default_rules() -> RuleFile:
    """Load the rules that ship with the package."""
    text = files("stabilizer.rules").joinpath("default.yaml").read_text(encoding="utf-8")
    return load_rules(text, "default.yaml")


def _details(error: ValidationError) -> list[tuple[Path, str, str, JsonValue]]:
    return [
        (detail["loc"], detail["type"], detail["msg"], detail["input"])
        for detail in error.errors(include_url=False, include_context=False)
    ]


def _explain(detail: tuple[Path, str, str, JsonValue]) -> tuple[str, Path]:
    """Put a validation error into words: the message and where it belongs."""
    location, kind, message, value = detail
    if kind == "missing":
        return "is missing", location
    if kind == "extra_forbidden":
        return "is not a field here", location
    if location and location[-1] == "[key]":
        location = location[:-1]
    message = message.removeprefix("Value error, ")
    if isinstance(value, dict | list):
        return message, location
    return f"is {str(value)[:80]!r}: {message}", location

"""The settings of a monitored job."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from stabilizer.agent.control.limits import Limits
from stabilizer.agent.control.optimizer_step import GuardPolicy
from stabilizer.agent.telemetry.http import Endpoint, check_token
from stabilizer.errors import ConfigurationError, RuleFileError
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.runs import Key, Name
from stabilizer.rules.loader import load_rules

_NAME: Final = TypeAdapter(Name)
_KEY: Final = TypeAdapter(Key)


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """The settings of a monitored job.

    All are checked here, on every rank and before anything is set up: a mistake found later, by
    rank 0 alone, would leave the others waiting.

    Raises:
        ConfigurationError: A value is invalid; lists every mistake of the policy.
    """

    url: str | None
    """Address of the collector; None evaluates the rules in the job itself."""
    run: str
    key: str = ""
    """Distinguishes runs of the same name, for example a scheduler's job id."""
    token: str | None = field(default=None, repr=False)
    mode: Mode | None = None
    """None leaves it to the policy, which ships with `propose`."""
    policy: Path | str | None = None
    """Rule file for this run; None takes the collector's, or the one that ships."""
    snapshot_every: int = 25
    """Optimizer steps between two snapshots."""
    keep_snapshots: int = 6
    snapshot_bytes: int | None = None
    """Host memory of one rank for snapshots; None shares a quarter of the machine's."""
    guard: GuardPolicy = GuardPolicy.OBSERVE
    limits: Limits = field(default_factory=Limits)
    max_queries: int = 64
    """Query positions sampled per attention and step."""
    attention: bool = True
    head: str | None = None
    """Dotted name of the module whose outputs are the logits; None for `lm_head`."""
    _policy_text: str | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.mode is not None:
            object.__setattr__(self, "mode", choose(Mode, "mode", self.mode))
        object.__setattr__(self, "guard", choose(GuardPolicy, "guard", self.guard))
        bounds = {"snapshot_every": self.snapshot_every, "keep_snapshots": self.keep_snapshots}
        if self.snapshot_bytes is not None:
            bounds["snapshot_bytes"] = self.snapshot_bytes
        for name, value in bounds.items():
            if value < 1:
                raise ConfigurationError(f"{name} is {value}; allowed: 1 or more")
        _check_name("run", self.run, _NAME)
        _check_name("key", self.key, _KEY)
        if self.url is not None:
            Endpoint.parse(self.url)
        check_token(self.token)
        if self.policy is not None:
            object.__setattr__(self, "_policy_text", _read_policy(Path(self.policy)))

    def policy_text(self) -> str | None:
        """Return the rule file as it was read; None without one."""
        return self._policy_text


def _check_name(field_name: str, value: str, kind: TypeAdapter[str]) -> None:
    try:
        kind.validate_python(value)
    except ValidationError as error:
        least = 1 if kind is _NAME else 0
        raise ConfigurationError(
            f"{field_name} is {str(value)[:200]!r}; allowed: {least} to 200 characters, no line "
            "breaks or other control characters"
        ) from error


def _read_policy(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"policy {str(path)!r} cannot be read: {error}") from error
    try:
        load_rules(text, str(path))
    except RuleFileError as group:
        mistakes = "\n".join(f"  {mistake}" for mistake in group.exceptions)
        raise ConfigurationError(
            f"policy {str(path)!r} has mistakes:\n{mistakes}"
        ) from None  # the group would repeat them with stack frames
    return text


def choose(kind: Any, field_name: str, value: Any) -> Any:  # noqa: ANN401  an enum and its values
    """Return the member of an enum with this value.

    Raises:
        ConfigurationError: There is none.
    """
    try:
        return kind(value)
    except ValueError as error:
        allowed = ", ".join(member.value for member in kind)
        raise ConfigurationError(f"{field_name} is {value!r}; allowed: {allowed}") from error

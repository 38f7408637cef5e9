"""Tests of rules as data: series in a short notation, and what must happen at which step.

    rules: default                     # or a rule file beside this one, or its content
    series:
      loss: 2.0x100~0.01 +0.1x20 nan   # one value a step
      grad_norm/fc2/layer0: 1.0x121
    expect:
      - 103 alert loss_jump firing
      - 121 alert loss_nonfinite firing
      - 121 command rollback 75 skip 200

A series is a list of pieces: `2.0x50` is 2.0 fifty times; `+0.1x20` continues from the last value
and rises by 0.1 each time, `+-0.1x20` falls, `*1.1x20` grows by the factor; `2.0+0.1x20` and
`2.0-0.1x20` begin at 2.0; `nan`, `inf`, `-inf` are values; `_` is not measured. `~0.02` behind a
piece adds normal noise of that spread, always the same. Series are named as columns of a log, or
with labels in braces.

What is expected is a list in the order of the steps: `STEP alert RULE firing|resolved`, `STEP
incident opened|resolved`, `STEP decision KIND/REASON`, `STEP command KIND ...`, `STEP cancel KEY`;
STEP may be `ATTEMPT.STEP`. Commands are always compared; alerts of the rules and in the states that
are named; incidents and decisions if one is named; and all of them if nothing is expected.
"""

from __future__ import annotations

import difflib
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML

from stabilizer.errors import ConfigurationError
from stabilizer.logs.names import series_of
from stabilizer.protocol.batches import Marker, MarkerKind
from stabilizer.protocol.commands import (
    Command,
    CommandResult,
    CommandState,
    ReadBack,
    ReduceLrParameters,
    RejectReason,
    RollbackParameters,
)
from stabilizer.protocol.decisions import AlertState, IncidentState, Mode
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.runs import Tick
from stabilizer.protocol.series import Catalog
from stabilizer.replay.job import (
    KEPT_SNAPSHOTS,
    SNAPSHOT_EVERY,
    SimulatedRing,
    applied_command,
    issued_command,
)
from stabilizer.rules.brain import Brain
from stabilizer.rules.loaded_brain import LoadedBrain
from stabilizer.rules.loader import RuleFile, default_rules, load_rules
from stabilizer.rules.outcome import CommandIntent, Outcome, PolicyContext
from stabilizer.yaml_lines import YamlSource, parse_yaml

_NUMBER = r"(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)"
_PIECE = re.compile(
    rf"(?P<first>-?{_NUMBER}|-?inf|nan|_)?(?:(?P<how>[+*-])(?P<by>-?{_NUMBER}))?"
    rf"(?:x(?P<count>\d+))?(?:~(?P<noise>{_NUMBER}))?\Z"
)
_LINE = re.compile(
    r"(?:(?P<attempt>\d+)\.)?(?P<step>\d+) "
    r"(?P<kind>alert|incident|decision|command|cancel) (?P<what>.+)"
)
_ALWAYS: Final = frozenset({"command", "cancel"})
_MAX_VALUES: Final = 1_000_000


def parse_series(text: str) -> list[float | None]:
    """Read the short notation; None is a value that was not measured.

    Raises:
        ValueError: A piece is none; the message names it.
    """
    values: list[float | None] = []
    noise = np.random.default_rng(0)
    last = math.nan
    for piece in str(text).split():
        match = _PIECE.match(piece)
        if match is None or not (match["first"] or match["how"]):
            raise ValueError(f"{piece!r} is no piece of a series; write 2.0x50, +0.1x20, nan or _")
        count = int(match["count"] or 1)
        if len(values) + count > _MAX_VALUES:
            raise ValueError(f"{piece!r} makes the series longer than {_MAX_VALUES} values")
        if match["first"] == "_":
            values += [None] * count
            continue
        if match["first"] is None and not values:
            raise ValueError(f"{piece!r} continues from the last value, and there is none")
        by = float(match["by"] or 0)
        for index in range(count):
            # A piece without a first value takes its first step away from the last one.
            last = _next(match, by, last, index)
            values.append(last + float(match["noise"] or 0) * float(noise.standard_normal()))
    return values


def _next(match: re.Match[str], by: float, last: float, index: int) -> float:
    if match["first"] is not None and index == 0:
        return float(match["first"])
    if match["how"] == "*":
        return last * by
    return last - by if match["how"] == "-" else last + by


class _CasePart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EventSpec(_CasePart):
    """What happens before a step."""

    step: Annotated[int, Field(ge=1)]
    attempt: Annotated[int, Field(ge=1)] = 1
    marker: MarkerKind | None = None
    mode: Mode | None = None
    disarmed: bool | None = None
    silenced: tuple[str, ...] | None = None
    tick: dict[Literal["silent", "stalled", "behind"], Annotated[float, Field(ge=0)]] | None = None
    """What a clock shows, in seconds."""


class CaseSpec(_CasePart):
    """One test."""

    name: str = ""
    doc: str = ""
    rules: str | dict[str, Any] = "default"
    mode: Mode = Mode.AUTO
    every: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Steps between two values."""
    snapshots: Annotated[int, Field(ge=0, le=1_000_000)] = SNAPSHOT_EVERY
    """Steps between two snapshots of the job; 0 for a job that takes none."""
    keep_snapshots: Annotated[int, Field(ge=1, le=10_000)] = KEPT_SNAPSHOTS
    commands: Literal["applied", "rejected", "ignored"] = "applied"
    """What the job does with a command, one step later."""
    series: dict[str, str | float] | None = None
    attempts: tuple[dict[str, str | float], ...] = ()
    """Series of each attempt, from the step at which it starts, instead of `series`."""
    events: tuple[EventSpec, ...] = ()
    expect: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_series(self) -> Self:
        if (self.series is None) == (not self.attempts):
            raise ValueError("give either series or attempts")
        for index, columns in enumerate(self.attempts or (self.series or {},)):
            if not columns:
                raise ValueError(f"attempt {index + 1} has no series")
            for name, text in columns.items():
                try:
                    parse_series(str(text))
                except ValueError as error:
                    raise ValueError(f"series {name}: {error}") from error
        for line in self.expect:
            if _LINE.match(line) is None:
                raise ValueError(
                    f"{line!r} expects nothing known; write e.g. '103 alert loss_jump firing'"
                )
        return self


@dataclass(frozen=True, slots=True)
class Case:
    """A test with its rules."""

    name: str
    spec: CaseSpec
    rules: RuleFile

    def play(self) -> list[str]:
        """Play the series; return all that happened, one line each."""
        return CasePlayer(self.spec, self.rules).play()

    def difference(self, happened: Sequence[str], *, strict: bool = False) -> list[str]:
        """Compare with what is expected.

        Args:
            happened: As `play` returns it.
            strict: Compare alerts, decisions and commands also where none is expected.

        Returns:
            Nothing if all is as expected; else lines that begin with `-` (expected) and `+`
            (happened), with their neighbours.
        """
        expected = [_full(line) for line in self.spec.expect]
        if not any(line.partition(" ")[0].count(".") for line in expected):
            happened = [line.partition(".")[2] for line in happened]
        subjects = {_subject(line) for line in expected}
        is_strict = strict or not expected
        shown = [line for line in happened if _is_compared(line, subjects, strict=is_strict)]
        if shown == expected:
            return []
        lines = difflib.unified_diff(expected, shown, n=2, lineterm="")
        return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def _parts(line: str) -> tuple[str, str]:
    """Return the kind and the content of a line."""
    match = _LINE.match(line)
    if match is None:
        raise ValueError(f"{line!r} is no line of a test")
    return match["kind"], match["what"]


def _full(line: str) -> str:
    """Add the state that an expected alert has if none is given."""
    kind, what = _parts(line)
    return f"{line} {AlertState.FIRING}" if kind == "alert" and " " not in what else line


def _subject(line: str) -> str:
    """Return what a line is about: an alert's rule and state; else the kind alone."""
    kind, what = _parts(line)
    return f"{kind} {what}" if kind == "alert" else kind


def _is_compared(line: str, subjects: set[str], *, strict: bool) -> bool:
    kind, _ = _parts(line)
    is_named = _subject(line) in subjects or kind in _ALWAYS
    return is_named or (strict and kind in {"alert", "decision"})


class CasePlayer:
    """A job and a collector around the rules."""

    def __init__(self, spec: CaseSpec, rules: RuleFile) -> None:
        self._spec = spec
        self._brain = Brain(rules)
        self._loaded = LoadedBrain(self._brain, PolicyContext(spec.mode))
        self._context = PolicyContext(spec.mode)
        self._ring = SimulatedRing(spec.snapshots, spec.keep_snapshots) if spec.snapshots else None
        self._attempt = 1
        self._at = ""
        self._happened: list[str] = []
        self._waiting: list[Command] = []
        self._incidents: set[int] = set()
        self._is_finite = True

    def play(self) -> list[str]:
        """Play all attempts."""
        attempts = self._spec.attempts or (self._spec.series or {},)
        self._brain.begin_attempt(1, 0, MarkerKind.RESUME)
        start: int | None = 0
        for columns in attempts:
            if start is None:
                break
            parsed = {name: parse_series(str(text)) for name, text in columns.items()}
            start = self._play_attempt(parsed, start)
        return self._happened

    def _play_attempt(self, columns: dict[str, list[float | None]], start: int) -> int | None:
        """Play one attempt; return where the next one starts, None if there is none."""
        catalog = Catalog.of(series_of(name) for name in columns)
        self._brain.add_catalog(catalog)
        length, every = max(map(len, columns.values())), self._spec.every
        for index in range(length):
            step = start + (index + 1) * every
            rewound = self._apply(step - every)
            if rewound is not None:
                return rewound
            row = [cells[index] if index < len(cells) else None for cells in columns.values()]
            self._show(catalog, step, row)
        return self._apply(start + length * every)

    def _show(self, catalog: Catalog, step: int, row: Sequence[float | None]) -> None:
        self._at = f"{self._attempt}.{step}"
        present = np.array([value is not None for value in row])
        with np.errstate(over="ignore"):
            values = np.array([0 if value is None else value for value in row], np.float32)
        for key, value in zip(catalog.series, row, strict=True):
            if key.metric == "loss" and not key.labels and value is not None:
                self._is_finite = math.isfinite(value)
        blocks = []
        if present.any():
            steps, times = np.array([step], np.int64), np.zeros(1)
            blocks.append(FrameBlock(catalog.id, steps, times, values[None], present[None]))
        markers = list(self._events(step))
        context = self._context
        self._loaded.show(blocks, markers, lambda _step: context, self._take)
        if self._ring is not None and self._ring.reach(
            step,
            self._attempt,
            since=step - self._spec.every,
            finite=self._is_finite,
            healthy=self._brain.healthy_snapshots,
        ):
            self._brain.set_snapshots(self._ring.held)

    def _events(self, step: int) -> Iterator[Marker]:
        before, context = step - self._spec.every, self._context
        for event in self._spec.events:
            if not before < event.step <= step or event.attempt != self._attempt:
                continue
            if event.tick is not None:
                self._take(self._brain.tick(Tick(before, **event.tick)))
            if event.marker is not None:
                yield Marker(kind=event.marker, step=event.step - 1)
            silenced = event.silenced
            context = PolicyContext(
                mode=event.mode or context.mode,
                disarmed=context.disarmed if event.disarmed is None else event.disarmed,
                silenced=context.silenced if silenced is None else frozenset(silenced),
            )
        self._context = context

    def _apply(self, step: int) -> int | None:
        """Settle the commands as the job does; return the step of a rollback."""
        waiting, self._waiting = self._waiting, []
        if self._spec.commands == "ignored":
            return None
        self._at = f"{self._attempt}.{step}"
        for command in waiting:
            if self._spec.commands == "rejected":
                self._take(self._brain.command_changed(_rejected(command)))
                continue
            parameters = command.parameters
            is_rollback = isinstance(parameters, RollbackParameters)
            reached = parameters.target.step if isinstance(parameters, RollbackParameters) else step
            read_back = ReadBack(attempt=self._attempt, step=reached)
            self._take(self._brain.command_changed(applied_command(command, step, read_back)))
            if is_rollback:
                self._rewind(reached)
                return reached
        return None

    def _rewind(self, step: int) -> None:
        self._attempt += 1
        self._at = f"{self._attempt}.{step}"
        self._loaded.seen.clear()
        if self._ring is not None:
            self._ring.drop_after(step)
        self._take(self._brain.begin_attempt(self._attempt, step, MarkerKind.ROLLBACK))
        if self._ring is not None:
            self._brain.set_snapshots(self._ring.held)

    def _take(self, out: Outcome) -> None:
        for change in out.alerts:
            if change.state in {AlertState.FIRING, AlertState.RESOLVED}:
                self._note(f"alert {change.key.rule} {change.state}")
        for incident in out.incidents:
            if incident.number not in self._incidents:
                self._incidents.add(incident.number)
                self._note("incident opened")
            if incident.decision is not None:
                decision = incident.decision
                self._note(f"decision {decision.kind}/{decision.reason}")
            if incident.state is IncidentState.RESOLVED:
                self._note("incident resolved")
        for intent in out.commands:
            self._note(f"command {describe_command(intent)}")
            command = issued_command(intent)
            if not intent.proposed:
                self._waiting.append(command)
        for key in out.cancellations:
            self._waiting = [command for command in self._waiting if command.id != key]
            self._note(f"cancel {key}")

    def _note(self, text: str) -> None:
        self._happened.append(f"{self._at} {text}")


def _rejected(command: Command) -> Command:
    result = CommandResult(
        command_id=command.id, state=CommandState.REJECTED, reason=RejectReason.UNSUPPORTED
    )
    return command.model_copy(update={"state": CommandState.REJECTED, "result": result})


def describe_command(intent: CommandIntent) -> str:
    """Describe a command in a few words: `rollback 75 skip 200`, `reduce_lr 0.75`."""
    parameters = intent.parameters
    text = str(parameters.kind)
    if isinstance(parameters, RollbackParameters):
        text += f" {parameters.target.step} skip {parameters.skip_steps}"
        if parameters.reduce_lr is not None:
            text += f" reduce_lr {parameters.reduce_lr.factor:g}"
    if isinstance(parameters, ReduceLrParameters):
        text += f" {parameters.factor:g}"
    return text + (" proposed" if intent.proposed else "")


def load_cases(path: Path) -> list[Case]:
    """Read a file with one test, or with a list of them under `tests`.

    Raises:
        ConfigurationError: The file cannot be read, or has mistakes; every one with its line.
        RuleFileError: The rules have mistakes.
    """
    try:
        source = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
    mistakes = [(m.line, f"{m.field}: {m.message}") for m in source.mistakes]
    cases: list[Case] = []
    data = source.data
    if not isinstance(data, dict):
        mistakes.append((1, "(file): allowed: a mapping with series and expect, or with tests"))
    elif isinstance(data.get("tests"), list):
        shared = {name: value for name, value in data.items() if name != "tests"}
        for index, one in enumerate(data["tests"]):  # type: ignore[arg-type]  # a list by now
            merged = {**shared, **one} if isinstance(one, dict) else one
            cases += _read_case(path, merged, source, ("tests", index), mistakes)
    else:
        cases += _read_case(path, data, source, (), mistakes)
    if mistakes:
        lines = (f"{path}:{line}: {message}" for line, message in sorted(mistakes))
        raise ConfigurationError("\n".join(lines))
    return cases


def _read_case(
    path: Path,
    data: object,
    source: YamlSource,
    at: tuple[str | int, ...],
    mistakes: list[tuple[int, str]],
) -> Iterator[Case]:
    try:
        spec = CaseSpec.model_validate(data)
        rules = _rules_of(path, spec)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_context=False):
            field, line = source.locate((*at, *detail["loc"]))
            message = detail["msg"].removeprefix("Value error, ")
            mistakes.append((line, f"{field}: {message}"))
        return
    yield Case(spec.name or ".".join([path.stem, *map(str, at[1:])]), spec, rules)


def _rules_of(path: Path, spec: CaseSpec) -> RuleFile:
    if isinstance(spec.rules, dict):
        text = io.StringIO()
        YAML(typ="safe", pure=True).dump(spec.rules, text)
        return load_rules(text.getvalue(), f"{path} (rules)")
    if spec.rules == "default":
        return default_rules()
    file = path.parent / spec.rules
    try:
        return load_rules(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: cannot be read: {error}") from error

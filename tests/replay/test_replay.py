"""Plays tests/replay/cases/*.yaml: series in a short notation, and what must be said at which step.

A case:

    rules: a rule file, as in production; or `default` for the shipped one
    mode: auto
    commands: applied | rejected | ignored     what the job does with a command, one step later
    snapshots: 5                               the job takes one every so many steps
    attempts:                                  series of each attempt, from the step it begins at
      - {loss: 2.0x100 3.0x5 2.0x50}
    events:                                    before the step named
      - {step: 40, marker: phase_change}
      - {step: 50, disarmed: true}
    expect:                                    everything, in order, attempt.step first
      - 1.103 alert loss_jump firing
      - 1.103 decision wait/may_recover
      - 2.20 command rollback 100 skip 7

Series: `2.0x100` is 2.0 a hundred times, `2.0+0.01x50` rises by 0.01 each, `2.0*1.1x5` grows by
the factor, `_` is not measured, `nan`, `inf` are values. A `~0.02` behind the count adds noise of
that size, always the same. A case ends with the series of its last attempt.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from stabilizer.protocol.batches import Marker, MarkerKind, SnapshotInfo
from stabilizer.protocol.commands import (
    Command,
    CommandKind,
    CommandResult,
    CommandState,
    ReadBack,
    RejectReason,
    RollbackParameters,
)
from stabilizer.protocol.decisions import AlertState, Mode
from stabilizer.protocol.series import Catalog
from stabilizer.rules.brain import Brain, PolicyContext
from stabilizer.rules.loader import RuleFile, default_rules, load_rules
from stabilizer.rules.outcome import CommandIntent, Outcome

CASES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
NUMBER = r"-?(?:\d+\.?\d*(?:e[+-]?\d+)?|nan|inf)"
PIECE = re.compile(
    rf"(?P<first>{NUMBER}|_)(?:(?P<how>[+*-])(?P<by>\d+\.?\d*))?(?:x(?P<count>\d+))?(?:~(?P<noise>\d+\.?\d*))?\Z"
)


def series(text: str) -> list[float | None]:
    """Read the short notation."""
    values: list[float | None] = []
    noise = np.random.default_rng(0)
    for piece in str(text).split():
        match = PIECE.match(piece)
        if match is None:
            raise ValueError(f"{piece!r} is not a piece of a series")
        count, by = int(match["count"] or 1), float(match["by"] or 0)
        scale = float(match["noise"] or 0)
        for index in range(count):
            if match["first"] == "_":
                values.append(None)
                continue
            value = float(match["first"])
            moved = {"+": value + by * index, "-": value - by * index}.get(match["how"] or "+")
            value = value * by**index if moved is None else moved
            values.append(value + scale * noise.standard_normal())
    return values


@dataclass
class Player:
    """A job and a collector around a brain."""

    case: dict
    rules: RuleFile
    attempt: int = 1
    told: list[str] = field(default_factory=list)
    known: list[SnapshotInfo] = field(default_factory=list)
    due: list[CommandIntent] = field(default_factory=list)
    context: PolicyContext = field(default_factory=lambda: PolicyContext(Mode.AUTO))

    def play(self) -> list[str]:
        self.context = PolicyContext(Mode(self.case.get("mode", "auto")))
        self.brain = Brain(self.rules)
        attempts = [
            {name: series(text) for name, text in attempt.items()}
            for attempt in self.case["attempts"]
        ]
        catalog = Catalog.of(attempts[0])
        self.brain.add_catalog(catalog)
        self.brain.begin_attempt(1, 0, MarkerKind.RESUME)
        start = 0
        for columns in attempts:
            rewound = self._attempt(catalog, columns, start)
            if rewound is None:
                break
            start = rewound
        return self.told

    def _attempt(self, catalog: Catalog, columns: dict, start: int) -> int | None:
        """Play one attempt; return where the next one begins, None if there is none."""
        length = max(len(values) for values in columns.values())
        for index in range(length):
            step = start + index + 1
            rewound = self._settle(step - 1)
            if rewound is not None:
                return rewound
            self._events(step)
            row = [
                values[index] if index < len(values) else None
                for values in (columns[str(key)] for key in catalog.series)
            ]
            present = np.array([value is not None for value in row])
            frame = np.array([0 if value is None else value for value in row], np.float32)
            self._tell(step, self.brain.observe(catalog.id, step, frame, present))
            self._tell(step, self.brain.decide(step, self.context))
            self._snapshot(step)
        return self._settle(start + length)

    def _events(self, step: int) -> None:
        for event in self.case.get("events", ()):
            if event["step"] != step or event.get("attempt", 1) != self.attempt:
                continue
            if "marker" in event:
                self.brain.marker(Marker(kind=MarkerKind(event["marker"]), step=step - 1))
            self.context = PolicyContext(
                Mode(event.get("mode", self.context.mode)),
                event.get("disarmed", self.context.disarmed),
                frozenset(event.get("silenced", self.context.silenced)),
            )

    def _snapshot(self, step: int) -> None:
        every = self.case.get("snapshots")
        if every and step % every == 0:
            name = f"{self.attempt}-{step}"
            info = SnapshotInfo(id=name, attempt=self.attempt, step=step, finite=True)
            self.known.append(info)
            self.brain.set_snapshots(self.known)

    def _settle(self, step: int) -> int | None:
        due, self.due = self.due, []
        answer = self.case.get("commands", "applied")
        if answer == "ignored":
            return None
        for intent in due:
            parameters = intent.parameters
            is_applied = answer == "applied"
            is_rollback = is_applied and isinstance(parameters, RollbackParameters)
            stands = parameters.target.step if is_rollback else step
            result = CommandResult(
                command_id=intent.key,
                state=CommandState(answer),
                reason=None if is_applied else RejectReason.UNSUPPORTED,
                applied_step=step,
                read_back=ReadBack(attempt=self.attempt, step=stands),
            )
            command = Command(
                id=intent.key,
                run_id="run",
                attempt=intent.attempt,
                parameters=parameters,
                state=CommandState(answer),
                reason=intent.reason,
                issued_step=intent.issued_step,
                issued_at=EPOCH,
                expires_at=EPOCH,
                result=result,
            )
            self._tell(step, self.brain.command_changed(command))
            if is_rollback:
                self.attempt += 1
                out = self.brain.begin_attempt(self.attempt, stands, MarkerKind.ROLLBACK)
                self._tell(stands, out)
                return stands
        return None

    def _tell(self, step: int, out: Outcome) -> None:
        at = f"{self.attempt}.{step}"
        for change in out.alerts:
            if change.state in (AlertState.FIRING, AlertState.RESOLVED):
                self.told.append(f"{at} alert {change.key.rule} {change.state}")
        for incident in out.incidents:
            if incident.decision is not None:
                decision = incident.decision
                self.told.append(f"{at} decision {decision.kind}/{decision.reason}")
        for intent in out.commands:
            self.told.append(f"{at} command {_describe(intent)}")
            self.due.append(intent)
        self.told += [f"{at} cancel {key}" for key in out.cancellations]


def _describe(intent: CommandIntent) -> str:
    parameters = intent.parameters
    text = str(parameters.kind)
    if parameters.kind is CommandKind.ROLLBACK:
        text += f" {parameters.target.step} skip {parameters.skip_steps}"
        if parameters.reduce_lr is not None:
            text += f" reduce_lr {parameters.reduce_lr.factor:g}"
    if parameters.kind is CommandKind.REDUCE_LR:
        text += f" {parameters.factor:g}"
    return text + (" proposed" if intent.proposed else "")


def read(path: Path) -> tuple[dict, RuleFile]:
    case = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    if case["rules"] == "default":
        return case, default_rules()
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(case["rules"], text)
    return case, load_rules(text.getvalue(), path.name)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case_goes_as_written(path):
    case, rules = read(path)
    assert Player(case, rules).play() == [str(line) for line in case["expect"]]


def test_there_are_cases():
    assert len(CASES) >= 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5x2 _ 3", [1.5, 1.5, None, 3.0]),
        ("1+0.5x3", [1.0, 1.5, 2.0]),
        ("1-0.5x3", [1.0, 0.5, 0.0]),
        ("1*2x4", [1.0, 2.0, 4.0, 8.0]),
        ("inf -inf", [math.inf, -math.inf]),
    ],
)
def test_notation(text, expected):
    assert series(text) == expected


def test_notation_of_nan_and_noise():
    assert math.isnan(series("nan")[0])
    noisy = series("2x100~0.1")
    assert noisy == series("2x100~0.1")
    assert 0.05 < float(np.std(noisy)) < 0.2


def test_notation_that_is_none():
    with pytest.raises(ValueError, match="piece"):
        series("1..2")

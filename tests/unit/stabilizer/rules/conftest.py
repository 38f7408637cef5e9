"""Factories for rule files, brains and the calls that a collector makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pytest

from stabilizer.protocol.batches import MarkerKind, SnapshotInfo
from stabilizer.protocol.commands import (
    Command,
    CommandKind,
    CommandParameters,
    CommandResult,
    CommandState,
    ReadBack,
    RejectReason,
    RollbackParameters,
)
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.series import Catalog
from stabilizer.rules.brain import Brain, PolicyContext
from stabilizer.rules.loader import RuleFile, load_rules
from stabilizer.rules.outcome import CommandIntent, Outcome

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

RULES = [
    {
        "name": "nan",
        "select": {"metric": "loss"},
        "detect": {"nonfinite": {}},
        "severity": "divergence",
        "inhibit_after": {},
    },
    {
        "name": "high",
        "select": {"metric": "loss"},
        "detect": {"threshold": {"above": 3}},
        "for": 3,
        "severity": "divergence",
    },
    {
        "name": "warm",
        "select": {"metric": "loss"},
        "detect": {"threshold": {"above": 2}},
        "severity": "notice",
    },
    {
        "name": "inner",
        "select": {"metric": "activation_rms"},
        "detect": {"threshold": {"above": 10}},
        "severity": "precursor",
    },
]
POLICY = {
    "mode": "auto",
    "ladder": [
        {"reduce_lr": {"factor": 0.5, "steps": 50}},
        {"rollback": {"margin": 5, "skip": 7}},
        {"rollback": {"margin": 10, "skip": 9}, "reduce_lr": {"factor": 0.25}},
        "pause",
    ],
    "act_on": {
        "any": ["severity:divergence"],
        "or_all": ["severity:precursor", "rule:warm"],
        "after_wait": ["rule:warm"],
        "within": 5,
    },
    "guards": {"budget": {"rollback": 3, "per_steps": 1000}, "cooldown": 10, "watch": 20},
    "wait": 15,
    "healthy_after": 5,
    "quiet": 4,
}


def make_rules(rules: list[dict] | None = None, **policy: object) -> RuleFile:
    """A rule file; JSON is YAML."""
    content = {"rules": rules or RULES, "policy": {**POLICY, **policy}}
    return load_rules(json.dumps(content))


@pytest.fixture
def rules() -> Callable[..., RuleFile]:
    return make_rules


@dataclass
class Driver:
    """A run of one catalog, and a collector that has no database."""

    brain: Brain
    catalog: Catalog
    mode: Mode = Mode.AUTO
    disarmed: bool = False
    silenced: frozenset[str] = frozenset()
    attempt: int = 1
    at: int = 0
    log: list[tuple[int, str]] = field(default_factory=list)
    commands: list[CommandIntent] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    known: list[SnapshotInfo] = field(default_factory=list)

    def start(self) -> Driver:
        self.brain.add_catalog(self.catalog)
        self.take(self.brain.begin_attempt(1, 0, MarkerKind.RESUME))
        return self

    @property
    def context(self) -> PolicyContext:
        return PolicyContext(self.mode, self.disarmed, self.silenced)

    def take(self, out: Outcome) -> Outcome:
        self.outcomes.append(out)
        self.commands += out.commands
        self.cancelled += out.cancellations
        for change in out.incidents:
            if change.decision is not None:
                self.log.append(
                    (change.decision.step, f"{change.decision.kind}/{change.decision.reason}")
                )
        return out

    def step(self, *values: float | None) -> None:
        """One step with a value for every series; None for one that was not measured."""
        self.at += 1
        present = np.array([value is not None for value in values])
        frame = np.array([0 if value is None else value for value in values], np.float32)
        mask = None if present.all() else present
        self.take(self.brain.observe(self.catalog.id, self.at, frame, mask))
        self.take(self.brain.decide(self.at, self.context))

    def run(self, count: int, *values: float | None) -> None:
        for _ in range(count):
            self.step(*values)

    def snapshots(self, *steps: int, attempt: int | None = None, finite: bool = True) -> None:
        """The job's inventory gains snapshots."""
        number = self.attempt if attempt is None else attempt
        self.known += [
            SnapshotInfo(id=f"s{number}-{step}", attempt=number, step=step, finite=finite)
            for step in steps
        ]
        self.brain.set_snapshots(self.known)

    def command(
        self,
        state: CommandState,
        intent: CommandIntent | None = None,
        reject: RejectReason | None = None,
    ) -> Outcome:
        """The last command, or another one, changes its state."""
        intent = intent or self.commands[-1]
        return self.take(
            self.brain.command_changed(
                make_command(
                    intent.key,
                    intent.parameters,
                    state,
                    step=intent.issued_step,
                    attempt=intent.attempt,
                    reject=reject,
                    at=self.at,
                )
            )
        )

    def apply(self) -> None:
        """The job carries the last command out; after a rollback a new attempt begins."""
        intent = self.commands[-1]
        self.command(CommandState.APPLIED)
        if isinstance(intent.parameters, RollbackParameters):
            self.rewind(intent.parameters.target.step)

    def rewind(self, step: int, reason: MarkerKind = MarkerKind.ROLLBACK) -> None:
        self.attempt += 1
        self.at = step
        self.take(self.brain.begin_attempt(self.attempt, step, reason))

    @property
    def decisions(self) -> list[str]:
        return [text for _, text in self.log]


def make_command(
    name: str,
    parameters: CommandParameters,
    state: CommandState,
    *,
    step: int | None = None,
    attempt: int = 1,
    actor: str = "policy",
    reject: RejectReason | None = None,
    at: int = 0,
) -> Command:
    """A command as the collector has stored it."""
    result = None
    if state in (CommandState.APPLIED, CommandState.REJECTED, CommandState.FAILED):
        stands = at
        if parameters.kind is CommandKind.ROLLBACK:
            stands = parameters.target.step
        result = CommandResult(
            command_id=name,
            state=state,
            reason=reject,
            applied_step=at,
            read_back=ReadBack(attempt=attempt, step=stands),
        )
    return Command(
        id=f"id-{name}",
        run_id="run",
        attempt=attempt,
        parameters=parameters,
        state=state,
        reason=reject or "divergence",
        actor=actor,
        issued_step=step,
        issued_at=EPOCH,
        expires_at=EPOCH,
        result=result,
    )


@pytest.fixture
def command_of() -> Callable[..., Command]:
    return make_command


@pytest.fixture
def drive() -> Callable[..., Driver]:
    """Start a run of loss and one activation under the test policy."""

    def start(rule_file: RuleFile | None = None, *series: str, **options: object) -> Driver:
        catalog = Catalog.of(series or ("loss", 'activation_rms{layer="0"}'))
        return Driver(Brain(rule_file or make_rules()), catalog, **options).start()

    return start

"""Guards that hold an action back: budget and cooldown.

Counted in steps trained: steps that are repeated after a rollback count again, so that a cooldown
also passes when the step number goes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stabilizer.protocol.commands import CommandKind, CommandParameters, RollbackParameters
from stabilizer.protocol.decisions import DecisionReason
from stabilizer.rules.spec import GuardsSpec, PaceSpec


@dataclass(frozen=True, slots=True)
class Intervention:
    """An applied rollback or cut, and when: in steps trained."""

    kind: CommandKind
    at: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an action is held back, and for how many more steps; None if unknown."""

    reason: DecisionReason
    message: str
    steps: int | None = None


@dataclass(slots=True)
class InterventionLog:
    """The interventions of a run and its steps trained so far."""

    trained: int = 0
    last_step: int | None = None
    interventions: list[Intervention] = field(default_factory=list)

    def advance(self, step: int) -> None:
        """Count the steps up to a step."""
        if self.last_step is not None:
            self.trained += max(0, step - self.last_step)
        self.last_step = step

    def begin_attempt(self, from_step: int) -> None:
        """Continue from a step."""
        self.last_step = from_step

    def note(self, parameters: CommandParameters) -> None:
        """Record an applied command, if it is an intervention."""
        for kind in kinds(parameters):
            self.interventions.append(Intervention(kind, self.trained))

    def forget_before(self, steps: int) -> None:
        """Drop what is older than any guard looks back."""
        oldest = self.trained - steps
        if self.interventions and self.interventions[0].at < oldest:
            self.interventions = [past for past in self.interventions if past.at >= oldest]

    def check(self, guards: GuardsSpec, parameters: CommandParameters) -> Refusal | None:
        """Return why an intervention is refused now; None if it is allowed."""
        for kind in kinds(parameters):
            refusal = self._check_budget(guards, kind)
            if refusal is not None:
                return refusal
        return None

    def _check_budget(self, guards: GuardsSpec, kind: CommandKind) -> Refusal | None:
        budget = guards.budget
        limit = budget.rollback if kind is CommandKind.ROLLBACK else budget.reduce_lr
        if limit is None:
            return None
        spent = [
            past.at
            for past in self.interventions
            if past.kind is kind and self.trained - past.at < budget.per_steps
        ]
        if len(spent) < limit:
            return None
        message = f"{len(spent)} of {limit} {kind} in {budget.per_steps} steps used"
        wait = spent[-limit] + budget.per_steps - self.trained if limit else None
        return Refusal(DecisionReason.BUDGET_SPENT, message, wait)

    @property
    def last_intervention(self) -> int | None:
        """Steps trained at the last intervention; None if there was none."""
        return self.interventions[-1].at if self.interventions else None

    def check_cooldown(self, cooldown: int) -> Refusal | None:
        """Return why the cooldown refuses an intervention; None if it has passed."""
        if not self.interventions:
            return None
        wait = self.interventions[-1].at + cooldown - self.trained
        if wait <= 0:
            return None
        message = f"{wait} of {cooldown} cooldown steps left"
        return Refusal(DecisionReason.COOLDOWN, message, wait)


def paced(pace: PaceSpec | None, steps: int, trained: int, spacing: int) -> int:
    """Fit a number of steps to the steps trained so far and to the steps between two samples."""
    if pace is None:
        return steps
    in_time = min(steps, max(pace.least, int(pace.share * trained)))
    return max(in_time, pace.samples * spacing if spacing > 1 else 0)


def kinds(parameters: CommandParameters) -> tuple[CommandKind, ...]:
    """Return the interventions that a command is made of; none for pause, resume and the like."""
    if isinstance(parameters, RollbackParameters):
        cut = () if parameters.reduce_lr is None else (CommandKind.REDUCE_LR,)
        return (CommandKind.ROLLBACK, *cut)
    return (CommandKind.REDUCE_LR,) if parameters.kind is CommandKind.REDUCE_LR else ()

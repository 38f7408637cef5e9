"""The policy as it stands in a rule file."""

from __future__ import annotations

import re
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stabilizer.protocol.batches import SamplingPlan
from stabilizer.protocol.commands import Factor, Steps
from stabilizer.protocol.decisions import Mode

Count = Annotated[int, Field(ge=0, le=100_000)]
MAX_RUNGS: Final = 50
_ITEM: Final = re.compile(r"(severity|rule):[a-z][a-z0-9_]*(\|(severity|rule):[a-z][a-z0-9_]*)*\Z")


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ReduceLrRung(_Spec):
    """A cut of the learning rate."""

    factor: Factor
    """Multiplies the present rate."""
    steps: Steps | None = None
    """Steps at the reduced rate; None holds it until told otherwise."""
    ramp: Steps | None = None
    """Steps of the way back; None takes as many as `steps`."""

    @property
    def ramp_steps(self) -> int:
        """Steps of the linear way back."""
        return (self.steps or 0) if self.ramp is None else self.ramp


class RollbackRung(_Spec):
    """A rewind to a healthy snapshot."""

    margin: Steps = 100
    """The snapshot lies at least so many steps before the first sign."""
    skip: Steps = 0
    """Steps' worth of data left out from there on."""


class RungSpec(_Spec):
    """One step of the ladder: a cut, a rollback, both, or a pause."""

    reduce_lr: ReduceLrRung | None = None
    rollback: RollbackRung | None = None
    pause: bool = False

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"pause": True} if value == "pause" else value

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        acts = self.reduce_lr is not None or self.rollback is not None
        if acts == self.pause:
            raise ValueError("give reduce_lr, rollback, both of them, or pause")
        return self


class ActOnSpec(_Spec):
    """When an incident calls for an action.

    Items are `severity:<word>`, `rule:<name>`, or several of them with `|` between, of which one is
    enough. `severity:precursor` is met by a precursor or anything worse.
    """

    any: tuple[str, ...] = Field(default=(), strict=False)
    """One of these is enough."""
    or_all: tuple[str, ...] = Field(default=(), strict=False)
    """These together are enough: the two-signal rule."""
    after_wait: tuple[str, ...] = Field(default=(), strict=False)
    """One of these is enough if its condition holds, still or again, `wait` steps after its alert
    has fired."""
    within: Steps = 50
    """An alert that was resolved so many steps ago still counts as a signal."""

    @field_validator("any", "or_all", "after_wait")
    @classmethod
    def _items(cls, items: tuple[str, ...]) -> tuple[str, ...]:
        for item in items:
            if not _ITEM.match(item):
                raise ValueError(f"{item!r} is neither severity:<word> nor rule:<name>")
        return items

    @property
    def items(self) -> dict[str, tuple[str, ...]]:
        """All items by field."""
        return {"any": self.any, "or_all": self.or_all, "after_wait": self.after_wait}


class BudgetSpec(_Spec):
    """How many interventions within so many steps of training; None is without limit."""

    rollback: Count | None = 3
    reduce_lr: Count | None = None
    per_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 2000


class GuardsSpec(_Spec):
    """What holds an action back. Steps are steps trained: those repeated count again."""

    budget: BudgetSpec = BudgetSpec()
    cooldown: Steps = 100
    """Steps between two interventions."""
    watch: Steps = 250
    """Steps after an intervention in which it must prove itself."""
    max_tries: Annotated[int, Field(ge=1, le=100)] = 2
    """Attempts at one rung when its command fails."""


class SamplingSpec(_Spec):
    """How often modules are measured."""

    every: Annotated[int, Field(ge=1, le=10_000)] = 10
    burst: Steps = 50
    """Steps measured one by one after a precursor or worse becomes pending."""


class PolicySpec(_Spec):
    """What turns an incident into a command."""

    mode: Annotated[Mode, Field(strict=False)] = Mode.PROPOSE
    ladder: tuple[RungSpec, ...] = Field(strict=False)
    act_on: ActOnSpec
    guards: GuardsSpec = GuardsSpec()
    wait: Steps = 50
    """Steps in which a jump may recover by itself."""
    healthy_after: Steps = 50
    """Steps without an alert after a snapshot that make it healthy."""
    quiet: Annotated[int, Field(ge=1, le=100_000)] = 20
    """Steps without a firing alert with which an incident is resolved."""
    sampling: SamplingSpec = SamplingSpec()

    @field_validator("ladder")
    @classmethod
    def _some_rungs(cls, ladder: tuple[RungSpec, ...]) -> tuple[RungSpec, ...]:
        if not 1 <= len(ladder) <= MAX_RUNGS:
            raise ValueError(f"has {len(ladder)} rungs; allowed: 1 to {MAX_RUNGS}")
        return ladder

    @property
    def sampling_plan(self) -> SamplingPlan:
        """The plan without a burst."""
        return SamplingPlan(every=self.sampling.every)

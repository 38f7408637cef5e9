"""The schema of a rule file: rules and policy.

Every count of steps is of optimizer steps, whatever the sampling. Every count of samples is of
evaluated samples: a metric measured every 10 steps has one sample in 10 steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from stabilizer.protocol.batches import MarkerKind, SamplingPlan
from stabilizer.protocol.commands import Factor
from stabilizer.protocol.commands import Steps as CommandSteps
from stabilizer.protocol.decisions import Mode, Severity
from stabilizer.protocol.metrics import Kind, Tower
from stabilizer.protocol.runs import Phase
from stabilizer.rules.detector_specs import DetectSpec, RulePart, Samples, Share, Steps

RuleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,79}$")]
MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=120)]

Count = Annotated[int, Field(ge=0, le=100_000)]

MAX_RULES: Final = 500
MAX_RUNGS: Final = 50
ANY_VALUE: Final = "*"
ALL: Final = "all"
CLOSED_LABELS: Final = {"kind": frozenset(Kind), "tower": frozenset(Tower)}
"""Labels whose values are those of the protocol and no others."""
_ITEM: Final = re.compile(r"(severity|rule):[a-z][a-z0-9_]*(\|(severity|rule):[a-z][a-z0-9_]*)*\Z")


def _as_tuple(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


OneOrMore = BeforeValidator(_as_tuple)
LabelMatch = Annotated[tuple[str | None, ...], OneOrMore]


Phases = Annotated[tuple[Annotated[Phase, Field(strict=False)], ...], Field(strict=False)]


class LayerSpec(RulePart):
    """Layers by index, or a share of a tower's layers from the bottom or the top."""

    bottom: Share | None = None
    top: Share | None = None
    index: Annotated[tuple[int, ...] | None, Field(strict=False)] = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"index": [value]}
        return {"index": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(part is not None for part in (self.bottom, self.top, self.index)) != 1:
            raise ValueError("give {bottom: share}, {top: share} or a list of layers")
        return self

    def chosen(self, layers: frozenset[int]) -> frozenset[int]:
        """Pick from the layers that a tower has; a share takes at least one."""
        if self.index is not None:
            return layers & frozenset(self.index)
        ordered = sorted(layers, reverse=self.bottom is None)
        share = self.bottom if self.bottom is not None else self.top or 0.0
        return frozenset(ordered[: max(1, math.floor(share * len(ordered) + 0.5))])


class SelectSpec(BaseModel):
    """Which series a rule watches.

    A label that is not named may have any value or be absent. A label's value is a text, a list of
    them, null for "the series has no such label", or "*" for "it has, whatever it is".
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, LabelMatch]

    metric: Annotated[tuple[MetricName, ...], OneOrMore]
    layer: LayerSpec | None = None

    @property
    def labels(self) -> dict[str, tuple[str | None, ...]]:
        """Allowed values by label."""
        return self.__pydantic_extra__

    def __str__(self) -> str:
        return self.describe({})

    def describe(self, group: Mapping[str, str]) -> str:
        """Return the text form, with the labels of a group of the series in place of its own."""
        labels = {name: "|".join(map(str, values)) for name, values in self.labels.items()}
        parts = [f'{name}="{value}"' for name, value in sorted({**labels, **group}.items())]
        if self.layer is not None and "layer" not in group:
            given = self.layer.model_dump(exclude_none=True)
            parts.append("layer=" + ",".join(f'"{name} {value}"' for name, value in given.items()))
        return "|".join(self.metric) + ("{" + ",".join(parts) + "}" if parts else "")


class Statistic(StrEnum):
    """What several series are combined to."""

    MEDIAN = "median"
    MEAN = "mean"
    MIN = "min"
    MAX = "max"


class RatioSpec(RulePart):
    """The detector sees each series divided by others."""

    over: SelectSpec
    """The series that it is divided by."""
    take: Annotated[Statistic, Field(strict=False)] = Statistic.MEDIAN
    """What several of them are combined to."""
    same: Annotated[tuple[MetricName, ...], OneOrMore] = ()
    """Labels that they must share with the series; none takes them all."""
    fresh: Steps = 20
    """Steps for which a value is used."""


class ReduceLrRung(RulePart):
    """A cut of the learning rate."""

    factor: Factor
    """Multiplies the present rate."""
    steps: CommandSteps | None = None
    """Steps at the reduced rate; None holds it until another command."""
    ramp: CommandSteps | None = None
    """Steps of the way back; None takes as many as `steps`."""

    @property
    def ramp_steps(self) -> int:
        """Steps of the linear way back."""
        return (self.steps or 0) if self.ramp is None else self.ramp


class RollbackRung(RulePart):
    """A rewind to a healthy snapshot."""

    margin: CommandSteps = 100
    """The snapshot lies at least so many steps before the first sign."""
    skip: CommandSteps = 0
    """Steps' worth of data left out from there on."""


class RungSpec(RulePart):
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


_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])")


def _seconds(value: object) -> object:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None or float(match[1]) == 0:
        raise ValueError("allowed: a duration such as 90s, 10m, 2h, 1d")
    return float(match[1]) * _UNITS[match[2]]


Duration = Annotated[float, BeforeValidator(_seconds)]
"""Seconds; written with a unit."""


class ClockSpec(RulePart):
    """A limit of wall-clock time; exactly one."""

    stalled_for: Duration | None = None
    """The job reports, is not paused, and has completed no step for so long."""
    lost_for: Duration | None = None
    """The job has not reported for so long."""
    collector_behind: Duration | None = None
    """The newest frame was so old when it arrived."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        limits = (self.stalled_for, self.lost_for, self.collector_behind)
        if sum(limit is not None for limit in limits) != 1:
            raise ValueError("give exactly one of stalled_for, lost_for, collector_behind")
        return self

    @property
    def limit(self) -> float:
        """The limit in seconds."""
        limits = (self.stalled_for, self.lost_for, self.collector_behind)
        return next(limit for limit in limits if limit is not None)


class SpanSpec(RulePart):
    """How long a condition must hold: so many steps, and at least so many samples."""

    steps: Steps = 0
    """Optimizer steps, whatever the sampling."""
    samples: Samples = 1


def _span_tag(value: object) -> str:
    return "(span)" if isinstance(value, dict | SpanSpec) else "(samples)"


Span = Annotated[
    Annotated[Samples, Tag("(samples)")] | Annotated[SpanSpec, Tag("(span)")],
    Discriminator(_span_tag),
]
"""A number is a number of samples."""


class GroupsSpec(RulePart):
    """How many groups must meet the quorum together, for one alert of the rule."""

    least: float | Literal["all"] = 1.0
    """A count from 1, a share below 1 of the groups judged, or `all` of them, of two at least."""
    most: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """No more than so many, while others are judged and calm; 1 is "one alone"."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return value if isinstance(value, dict | GroupsSpec) else {"least": value}

    @field_validator("least", mode="before")
    @classmethod
    def _count_or_share_or_all(cls, value: object) -> object:
        if value == ALL:
            return value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]  # checked above
        if 0 < number < 1 or (number >= 1 and number.is_integer()):
            return number
        raise ValueError("allowed: a count from 1, a share below 1, all")

    @model_validator(mode="after")
    def _least_is_no_more_than_most(self) -> Self:
        least = self.least
        if self.most is not None and least != ALL and float(least) > self.most:
            raise ValueError(f"least is {least:g}; allowed: up to most, {self.most}")
        if self.most is not None and least == ALL:
            raise ValueError("give least: all, or most")
        return self


class ThenSpec(RulePart):
    """One rule fires after another."""

    first: RuleName
    second: RuleName
    within: Steps = 100
    """Steps between the two at most."""


class ConditionSpec(RulePart):
    """A condition on the run or on rules above: exactly one of its fields."""

    rule: RuleName | None = None
    """The rule fires."""
    within: Steps = 0
    """It counts for so many steps after it was resolved; with `times`, the steps they lie in."""
    times: Annotated[int, Field(ge=1, le=100)] = 1
    """The rule has begun to fire so often within `within` steps."""
    ready: RuleName | None = None
    """The rule judges: its series are measured and its baseline is learned."""
    all: Annotated[tuple[ConditionSpec, ...] | None, Field(strict=False, min_length=1)] = None
    any: Annotated[tuple[ConditionSpec, ...] | None, Field(strict=False, min_length=1)] = None
    not_: Annotated[ConditionSpec | None, Field(alias="not")] = None
    then: ThenSpec | None = None
    phase: Annotated[Phases, OneOrMore] = ()
    """The loss is in this phase, or in one of these."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        phase = self.phase or None
        parts = (self.rule, self.ready, self.all, self.any, self.not_, self.then, phase)
        if sum(part is not None for part in parts) != 1:
            raise ValueError("give exactly one of rule, ready, all, any, not, then, phase")
        if self.rule is None and (self.within or self.times > 1):
            raise ValueError("within and times belong to a rule")
        if self.times > 1 and not self.within:
            raise ValueError("times needs within: the steps in which to count")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Leave out what older files do not have, so that their hash stays the same."""
        content: dict[str, JsonValue] = handler(self)
        if not self.phase:
            content.pop("phase", None)
        return content

    def rules(self) -> frozenset[str]:
        """Names of all rules that the condition refers to."""
        parts = [*(self.all or ()), *(self.any or ())]
        parts += [self.not_] if self.not_ is not None else []
        names = {name for part in parts for name in part.rules()}
        names |= {name for name in (self.rule, self.ready) if name is not None}
        if self.then is not None:
            names |= {self.then.first, self.then.second}
        return frozenset(names)


class RuleSpec(RulePart):
    """A condition and its severity: on series (`select`, `detect`), or on other rules (`when`)."""

    name: RuleName
    doc: str = ""
    source: str = ""
    """Where its thresholds come from."""
    select: SelectSpec | None = None
    ratio: RatioSpec | None = None
    """Judge the ratio of the series to others."""
    detect: DetectSpec | None = None
    when: ConditionSpec | None = None
    clock: ClockSpec | None = None
    """Instead of them: a limit of wall-clock time."""
    severity: Annotated[Severity, Field(strict=False)]
    quorum: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Series that must be flagged together: a count from 1, or a share below 1 of those selected.
    With a quorum the rule has one alert; without, every series has its own."""
    by: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=120)] | None = None
    """A label: the quorum is of the series of each of its values, and each has an alert."""
    groups: GroupsSpec | None = None
    """How many of those groups must meet the quorum; the rule then has one alert."""
    for_: Annotated[Span, Field(alias="for")] = 1
    """Flagged samples in a row, or steps, with which an alert fires."""
    keep_firing_for: Span = 1
    """Clear samples in a row, or steps, with which a firing alert is resolved."""
    after_step: Steps = 0
    """Samples up to this step are neither judged nor learned: the warm-up."""
    inhibit_after: dict[Annotated[MarkerKind, Field(strict=False)], Steps] = Field(
        default={MarkerKind.RESUME: 50, MarkerKind.PHASE_CHANGE: 50}
    )
    """Steps after an event of the job in which samples are neither judged nor learned."""
    message: Annotated[str, Field(max_length=300)] = ""
    """Shown with the alert."""
    signal: bool = False
    """Only for the conditions of other rules: it raises no alert of its own."""
    remedy: RungSpec | None = None
    """The first action on an incident that this rule opens or decides; then the ladder."""

    @field_validator("quorum")
    @classmethod
    def _share_or_count(cls, quorum: float | None) -> float | None:
        if quorum is not None and quorum >= 1 and quorum != int(quorum):
            raise ValueError(f"{quorum} is neither a share below 1 nor a whole number")
        return quorum

    @model_validator(mode="after")
    def _series_or_rules(self) -> Self:
        on_series = self.select is not None or self.detect is not None
        if sum([on_series, self.when is not None, self.clock is not None]) > 1:
            raise ValueError("give either select and detect, or when, or clock")
        if self.clock is not None and self.severity is not Severity.NOTICE:
            raise ValueError("clock needs severity: notice; no command reaches a job that is late")
        if self.clock is not None and (self.signal or self.quorum or self.remedy or self.ratio):
            raise ValueError("clock goes with name, doc, source, severity and message")
        if self.when is not None and self.quorum is not None:
            raise ValueError("quorum belongs to select and detect")
        if self.when is not None and self.ratio is not None:
            raise ValueError("ratio belongs to select and detect")
        if self.ratio is not None and self.detect is not None and self.detect.absent is not None:
            raise ValueError("absent looks at series, not at their ratio")
        if self.by is not None and self.quorum is None:
            raise ValueError("by needs quorum: how many series of a group")
        if self.groups is not None and self.by is None:
            raise ValueError("groups needs by: the label of the groups")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Leave out what a file of version 0.1 does not have, so that its hash stays the same."""
        content: dict[str, JsonValue] = handler(self)
        for name in _ADDED:
            if not content.get(name):
                content.pop(name, None)
        return content

    @property
    def needs_rollback(self) -> bool:
        """Whether only a rollback helps: it detects a divergence by non-finite values."""
        is_nonfinite = self.detect is not None and self.detect.nonfinite is not None
        return self.severity is Severity.DIVERGENCE and is_nonfinite


_ADDED: Final = ("when", "signal", "remedy", "by", "groups", "ratio", "clock")


class ActOnSpec(RulePart):
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
    within: CommandSteps = 50
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


class BudgetSpec(RulePart):
    """How many interventions within so many steps of training; None is without limit."""

    rollback: Count | None = 3
    reduce_lr: Count | None = None
    per_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 2000
    then_pause: bool = False
    """When it is spent and another intervention is due: pause and call, instead of holding back."""

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Leave out what a file of version 0.1 does not have, so that its hash stays the same."""
        content: dict[str, JsonValue] = handler(self)
        if not self.then_pause:
            del content["then_pause"]
        return content


class GuardsSpec(RulePart):
    """Reasons to hold an action back. Counted in trained steps: repeated steps count again."""

    budget: BudgetSpec = BudgetSpec()
    cooldown: CommandSteps = 100
    """Steps between two interventions."""
    watch: CommandSteps = 250
    """Steps after an intervention in which its effect is measured."""
    max_tries: Annotated[int, Field(ge=1, le=100)] = 2
    """Attempts at one rung whose command fails."""


class PaceSpec(RulePart):
    """Fits wait, watch and cooldown to a run that is short or rarely sampled."""

    share: Share = 0.25
    """None is longer than this share of the steps trained so far,"""
    least: CommandSteps = 30
    """unless it has so many steps at most,"""
    samples: Samples = 5
    """or takes so many samples of the loss at most."""


class SamplingSpec(RulePart):
    """How often modules are measured."""

    every: Annotated[int, Field(ge=1, le=10_000)] = 10
    burst: CommandSteps = 50
    """Steps measured one by one after a precursor or worse becomes pending."""


class PolicySpec(RulePart):
    """What turns an incident into a command."""

    mode: Annotated[Mode, Field(strict=False)] = Mode.PROPOSE
    ladder: tuple[RungSpec, ...] = Field(strict=False)
    act_on: ActOnSpec
    guards: GuardsSpec = GuardsSpec()
    wait: CommandSteps = 50
    """Steps that a jump has to recover without action."""
    healthy_after: CommandSteps = 50
    """Steps without an alert after a snapshot that make it healthy."""
    quiet: Annotated[int, Field(ge=1, le=100_000)] = 20
    """Steps without a firing alert with which an incident is resolved."""
    sampling: SamplingSpec = SamplingSpec()
    pace: PaceSpec | None = None
    """None takes wait, watch and cooldown as they are given."""

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Leave out what a file of version 0.1 does not have, so that its hash stays the same."""
        content: dict[str, JsonValue] = handler(self)
        if self.pace is None:
            del content["pace"]
        return content

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


class RuleFileSpec(RulePart):
    """The content of a rule file."""

    rules: Annotated[tuple[RuleSpec, ...], Field(strict=False)]
    policy: PolicySpec

    @field_validator("rules")
    @classmethod
    def _some_rules(cls, rules: tuple[RuleSpec, ...]) -> tuple[RuleSpec, ...]:
        if not 1 <= len(rules) <= MAX_RULES:
            raise ValueError(f"has {len(rules)} rules; allowed: 1 to {MAX_RULES}")
        return rules

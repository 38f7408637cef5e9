"""The schema of a rule file: rules and policy.

Every count of samples is of evaluated samples: a metric measured every 10 steps has one sample in
10 steps. Every count of steps is of optimizer steps.
"""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from stabilizer.protocol.batches import MarkerKind, SamplingPlan
from stabilizer.protocol.commands import Factor
from stabilizer.protocol.commands import Steps as CommandSteps
from stabilizer.protocol.decisions import Mode, Severity
from stabilizer.protocol.metrics import Kind, Tower

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Samples = Annotated[int, Field(ge=1, le=100_000)]
Window = Annotated[int, Field(ge=4, le=10_000)]
Steps = Annotated[int, Field(ge=0, le=10_000_000)]
RuleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,79}$")]
MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=120)]

Count = Annotated[int, Field(ge=0, le=100_000)]

MAX_RULES: Final = 500
MAX_RUNGS: Final = 50
ANY_VALUE: Final = "*"
CLOSED_LABELS: Final = {"kind": frozenset(Kind), "tower": frozenset(Tower)}
"""Labels whose values are those of the protocol and no others."""
_ITEM: Final = re.compile(r"(severity|rule):[a-z][a-z0-9_]*(\|(severity|rule):[a-z][a-z0-9_]*)*\Z")


def _as_tuple(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


OneOrMore = BeforeValidator(_as_tuple)
LabelMatch = Annotated[tuple[str | None, ...], OneOrMore]


class _RulePart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Scale(StrEnum):
    """The scale on which a sample is compared."""

    LINEAR = "linear"
    LOG = "log"


class Direction(StrEnum):
    """The bad direction."""

    UP = "up"
    DOWN = "down"
    BOTH = "both"


class NonfiniteSpec(_RulePart):
    """The sample is NaN or Inf."""


class ThresholdSpec(_RulePart):
    """The sample is beyond a bound; exactly one of the two."""

    above: Number | None = None
    below: Number | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError("give exactly one of above, below")
        return self


class _BaselineSpec(_RulePart):
    """What detectors with a learned baseline have in common."""

    window: Window = 128
    """Samples of the baseline."""
    min_samples: Samples | None = None
    """Samples before anything is judged; None takes half the window."""
    relearn: Samples | None = None
    """After so many flagged samples in a row the new level is accepted: the baseline restarts.
    None takes four windows."""

    @model_validator(mode="after")
    def _samples_fit(self) -> Self:
        if self.min_samples is not None and self.min_samples > self.window:
            raise ValueError(f"min_samples is {self.min_samples}; allowed: 1 to {self.window}")
        return self

    @property
    def warm_up(self) -> int:
        """Samples before anything is judged."""
        return self.window // 2 if self.min_samples is None else self.min_samples

    @property
    def patience(self) -> int:
        """Flagged samples in a row after which the new level is accepted."""
        return 4 * self.window if self.relearn is None else self.relearn


class RobustZscoreSpec(_BaselineSpec):
    """Distance from the median of the window, in scaled median absolute deviations."""

    above: Positive
    scale: Annotated[Scale, Field(strict=False)] = Scale.LINEAR
    two_sided: bool = False
    relative_floor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.005
    """Smallest spread as a share of the median; on a log scale the same in its units."""
    absolute_floor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Smallest spread in units of the scale; 0.0156 (two quanta) for losses in bf16."""


class DriftSpec(_BaselineSpec):
    """Relative rise of a smoothed value over the best level of the window."""

    window: Window = 200
    above: Number
    """Largest relative rise; 0.03 is 3 percent. Zero or less requires progress: -0.01 flags a value
    that is not 1 percent better than the best level of the window."""
    direction: Annotated[Direction, Field(strict=False)] = Direction.UP
    """The bad direction, up or down."""
    smooth: Samples | None = None
    """Samples of the running median; None takes a tenth of the window."""
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 6.0
    """The rise must also be so many standard errors of the smoothed value."""
    recovered: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
    """A rise that has fallen by this share of its peak is recovering, and no longer flagged.
    1 flags it until it is gone."""

    @field_validator("direction")
    @classmethod
    def _one_way(cls, direction: Direction) -> Direction:
        if direction is Direction.BOTH:
            raise ValueError("allowed: up, down")
        return direction

    @property
    def smoothing(self) -> int:
        """Samples of the running median."""
        return max(3, self.window // 10) if self.smooth is None else self.smooth


class CollapseSpec(_BaselineSpec):
    """The sample is under a bound and clearly under its own baseline."""

    below: Number
    drop: Share = 0.3
    """The sample must also be this share under the upper decile of the window."""


class SpikeSpec(_BaselineSpec):
    """A sudden move away from the last few samples, in robust units of their own steps."""

    window: Window = 32
    above: Positive = 6.0
    direction: Annotated[Direction, Field(strict=False)] = Direction.UP
    relative_floor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.005
    absolute_floor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


DetectorSpec = (
    NonfiniteSpec | ThresholdSpec | RobustZscoreSpec | DriftSpec | CollapseSpec | SpikeSpec
)


class DetectSpec(_RulePart):
    """Exactly one detector."""

    nonfinite: NonfiniteSpec | None = None
    threshold: ThresholdSpec | None = None
    robust_zscore: RobustZscoreSpec | None = None
    drift: DriftSpec | None = None
    collapse: CollapseSpec | None = None
    spike: SpikeSpec | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in DetectSpec.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            allowed = ", ".join(DetectSpec.model_fields)
            raise ValueError(f"give exactly one of {allowed}; given: {', '.join(given) or 'none'}")
        return self

    @property
    def detector(self) -> DetectorSpec:
        """The detector that is given."""
        given = (getattr(self, name) for name in DetectSpec.model_fields)
        chosen: DetectorSpec = next(spec for spec in given if spec is not None)
        return chosen


class LayerSpec(_RulePart):
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
        metric = "|".join(self.metric)
        parts = [f'{n}="{"|".join(map(str, v))}"' for n, v in sorted(self.labels.items())]
        if self.layer is not None:
            given = self.layer.model_dump(exclude_none=True)
            parts.append("layer=" + ",".join(f'"{name} {value}"' for name, value in given.items()))
        return metric + ("{" + ",".join(parts) + "}" if parts else "")


class RuleSpec(_RulePart):
    """A condition and its severity."""

    name: RuleName
    doc: str = ""
    source: str = ""
    """Where its thresholds come from."""
    select: SelectSpec
    detect: DetectSpec
    severity: Annotated[Severity, Field(strict=False)]
    quorum: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Series that must be flagged together: a count from 1, or a share below 1 of those selected.
    With a quorum the rule has one alert; without, every series has its own."""
    for_: Annotated[int, Field(ge=1, le=100_000, alias="for")] = 1
    """Flagged samples in a row with which an alert fires."""
    keep_firing_for: Samples = 1
    """Clear samples in a row with which a firing alert is resolved."""
    after_step: Steps = 0
    """Samples up to this step are neither judged nor learned: the warm-up."""
    inhibit_after: dict[Annotated[MarkerKind, Field(strict=False)], Steps] = Field(
        default={MarkerKind.RESUME: 50, MarkerKind.PHASE_CHANGE: 50}
    )
    """Steps after an event of the job in which samples are neither judged nor learned."""
    message: Annotated[str, Field(max_length=300)] = ""
    """Shown with the alert."""

    @field_validator("quorum")
    @classmethod
    def _share_or_count(cls, quorum: float | None) -> float | None:
        if quorum is not None and quorum >= 1 and quorum != int(quorum):
            raise ValueError(f"{quorum} is neither a share below 1 nor a whole number")
        return quorum

    @property
    def needs_rollback(self) -> bool:
        """Whether only a rollback helps: it detects a divergence by non-finite values."""
        return self.severity is Severity.DIVERGENCE and self.detect.nonfinite is not None


class ReduceLrRung(_RulePart):
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


class RollbackRung(_RulePart):
    """A rewind to a healthy snapshot."""

    margin: CommandSteps = 100
    """The snapshot lies at least so many steps before the first sign."""
    skip: CommandSteps = 0
    """Steps' worth of data left out from there on."""


class RungSpec(_RulePart):
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


class ActOnSpec(_RulePart):
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


class BudgetSpec(_RulePart):
    """How many interventions within so many steps of training; None is without limit."""

    rollback: Count | None = 3
    reduce_lr: Count | None = None
    per_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 2000


class GuardsSpec(_RulePart):
    """Reasons to hold an action back. Counted in trained steps: repeated steps count again."""

    budget: BudgetSpec = BudgetSpec()
    cooldown: CommandSteps = 100
    """Steps between two interventions."""
    watch: CommandSteps = 250
    """Steps after an intervention in which its effect is measured."""
    max_tries: Annotated[int, Field(ge=1, le=100)] = 2
    """Attempts at one rung whose command fails."""


class SamplingSpec(_RulePart):
    """How often modules are measured."""

    every: Annotated[int, Field(ge=1, le=10_000)] = 10
    burst: CommandSteps = 50
    """Steps measured one by one after a precursor or worse becomes pending."""


class PolicySpec(_RulePart):
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


class RuleFileSpec(_RulePart):
    """The content of a rule file."""

    rules: Annotated[tuple[RuleSpec, ...], Field(strict=False)]
    policy: PolicySpec

    @field_validator("rules")
    @classmethod
    def _some_rules(cls, rules: tuple[RuleSpec, ...]) -> tuple[RuleSpec, ...]:
        if not 1 <= len(rules) <= MAX_RULES:
            raise ValueError(f"has {len(rules)} rules; allowed: 1 to {MAX_RULES}")
        return rules

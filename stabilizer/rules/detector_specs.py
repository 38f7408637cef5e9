"""The schema of detectors: what a rule's `detect` may say.

Steps are optimizer steps; samples are evaluated samples.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Samples = Annotated[int, Field(ge=1, le=100_000)]
Window = Annotated[int, Field(ge=4, le=10_000)]
Steps = Annotated[int, Field(ge=0, le=10_000_000)]


class RulePart(BaseModel):
    """A part of a rule file: immutable, strict, without unknown fields."""

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


class NonfiniteSpec(RulePart):
    """The sample is NaN or Inf."""


class ThresholdSpec(RulePart):
    """The sample is beyond a bound; exactly one of the two."""

    above: Number | None = None
    below: Number | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError("give exactly one of above, below")
        return self


class _BaselineSpec(RulePart):
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


class RiseSpec(RulePart):
    """A level above the recent reference, in units of the levels' own noise; counted in steps."""

    window: Window = 640
    """Steps of the reference and of the noise."""
    smooth: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Steps of a level."""
    above: Positive = 8.0
    """Smallest rise in units of the noise."""
    least: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Smallest rise as a share of the reference; on a log scale in its units."""
    floor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.002
    """Smallest noise as a share of the reference; on a log scale in its units."""
    ready: Annotated[int, Field(ge=4, le=10_000)] = 8
    """Levels before anything is judged."""
    heal_within: Annotated[int, Field(ge=0, le=1_000_000)] = 200
    """A rise that falls fast enough to be gone after so many steps is healing."""
    relearn: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Steps above the reference after which the new level is accepted; None takes four windows."""
    scale: Annotated[Scale, Field(strict=False)] = Scale.LINEAR
    direction: Annotated[Direction, Field(strict=False)] = Direction.UP

    @property
    def patience(self) -> int:
        """Steps above the reference after which the new level is accepted."""
        return 4 * self.window if self.relearn is None else self.relearn


class FallenSpec(RulePart):
    """The sample is far below the series' own early values, or under a bound."""

    share: Share = 0.5
    """Of the largest of the early values."""
    under: Number | None = None
    """Also flagged under this bound, whatever the early values were."""
    early: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Steps from the first sample on whose largest value is the reference."""


class StuckSpec(RulePart):
    """The series repeats one value exactly, such as a loss that has become zero."""

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Steps without a change."""
    samples: Samples = 10
    """Samples without a change."""


class ForecastSpec(RulePart):
    """The series will be beyond a bound within so many steps if it goes on as of late."""

    above: Number | None = None
    below: Number | None = None
    within: Annotated[int, Field(ge=1, le=1_000_000)]
    """Steps ahead."""
    window: Annotated[int, Field(ge=12, le=100_000)] = 240
    """Steps to which the line is fitted."""
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 4.0
    """The line must rise by so many times the scatter about it over the window."""
    scale: Annotated[Scale, Field(strict=False)] = Scale.LINEAR

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError("give exactly one of above, below")
        bound = self.below if self.above is None else self.above
        if self.scale is Scale.LOG and bound is not None and bound <= 0:
            raise ValueError(f"a bound of {bound:g} is never crossed on a log scale")
        return self


class ShiftSpec(RulePart):
    """A step to a new level that stays; counted in steps."""

    window: Annotated[int, Field(ge=8, le=100_000)] = 200
    """Steps of the level before."""
    hold: Annotated[int, Field(ge=4, le=100_000)] = 40
    """Steps for which the new level must have lasted."""
    above: Positive = 6.0
    """Smallest step in units of the noise."""
    least: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Smallest step as a share of the level before; on a log scale in its units."""
    floor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.002
    """Smallest noise as a share of the level before; on a log scale in its units."""
    flat: Share = 0.25
    """Largest movement within the new level as a share of the step."""
    keep: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Steps at the new level after which it is accepted; None takes the window."""
    scale: Annotated[Scale, Field(strict=False)] = Scale.LINEAR
    direction: Annotated[Direction, Field(strict=False)] = Direction.UP

    @property
    def patience(self) -> int:
        """Steps at the new level after which it is accepted."""
        return self.window if self.keep is None else self.keep


class AbsentSpec(RulePart):
    """A series that came regularly is measured no more while the run goes on."""

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Steps without a sample."""
    samples: Samples = 10
    """Steps of the run that must have been measured without it, and samples before it is missed.
    A series is missed after three times its longest gap at the earliest."""


DetectorSpec = (
    NonfiniteSpec
    | ThresholdSpec
    | RobustZscoreSpec
    | DriftSpec
    | CollapseSpec
    | SpikeSpec
    | RiseSpec
    | FallenSpec
    | StuckSpec
    | ForecastSpec
    | ShiftSpec
    | AbsentSpec
)


class DetectSpec(RulePart):
    """Exactly one detector."""

    nonfinite: NonfiniteSpec | None = None
    threshold: ThresholdSpec | None = None
    robust_zscore: RobustZscoreSpec | None = None
    drift: DriftSpec | None = None
    collapse: CollapseSpec | None = None
    spike: SpikeSpec | None = None
    rise: RiseSpec | None = None
    fallen: FallenSpec | None = None
    stuck: StuckSpec | None = None
    forecast: ForecastSpec | None = None
    shift: ShiftSpec | None = None
    absent: AbsentSpec | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in DetectSpec.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            allowed = ", ".join(DetectSpec.model_fields)
            raise ValueError(f"give exactly one of {allowed}; given: {', '.join(given) or 'none'}")
        return self

    @model_serializer(mode="wrap")
    def _only_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Leave out detectors that a file of version 0.1 does not know: its hash stays the same."""
        content: dict[str, JsonValue] = handler(self)
        return {k: v for k, v in content.items() if v is not None or k in _FIRST_DETECTORS}

    @property
    def detector(self) -> DetectorSpec:
        """The detector that is given."""
        given = (getattr(self, name) for name in DetectSpec.model_fields)
        chosen: DetectorSpec = next(spec for spec in given if spec is not None)
        return chosen


_FIRST_DETECTORS: Final = frozenset(
    {"nonfinite", "threshold", "robust_zscore", "drift", "collapse", "spike"}
)

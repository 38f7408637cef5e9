"""How many weights a model has, and models of another shape with as many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from stabilizer.errors import ConfigurationError
from trainer.config import PARTS, ModelConfig, Part
from trainer.module.architecture import build_skeleton
from trainer.module.parts import part_of

MOST_DIFFERENCE: Final = 0.01
"""Between the numbers of weights of two models that count as equally large."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of weights; what is shared counts once."""

    total: int
    """All of them."""
    trainable: int
    """Those that learn from the first step on; the vision encoder's last norm never does."""
    by_part: Mapping[Part, int]
    """All of them, by part of the model."""


def count_weights(config: ModelConfig) -> Sizes:
    """Count the weights of a model without building it in memory."""
    by_part: dict[Part, int] = dict.fromkeys(PARTS, 0)
    trainable = 0
    for name, parameter in build_skeleton(config).named_parameters():
        by_part[part_of(name)] += parameter.numel()
        trainable += parameter.numel() if parameter.requires_grad else 0
    return Sizes(total=sum(by_part.values()), trainable=trainable, by_part=by_part)


def at_equal_size(config: ModelConfig) -> ModelConfig:
    """Return the model of `layers_at_equal_size`; the same one where it is null.

    At equal size deeper models were seen to be less stable (IDEFICS talk, GPT-2 style models of
    1.5B). Width goes against depth: heads keep their size, so that the width comes in steps of one
    head, and the width inside the MLPs takes up what is left. Vision encoder and resampler stay as
    they are.

    Raises:
        ConfigurationError: No width makes up for this depth.
    """
    layers = config.layers_at_equal_size
    if layers is None:
        return config
    config = replace(config, layers_at_equal_size=None)
    wanted = count_weights(config).total
    shape = _Shape(config, layers)
    reshaped = shape.fitted(shape.nearest(wanted), wanted)
    difference = abs(count_weights(reshaped).total / wanted - 1)
    if difference > MOST_DIFFERENCE:
        raise ConfigurationError(
            f"model.layers_at_equal_size: {layers} cannot be used with {wanted} weights: the "
            f"nearest width, {reshaped.hidden_size}, differs by {difference:.1%}; allowed: a depth "
            f"with a width within {MOST_DIFFERENCE:.0%}"
        )
    return reshaped


class _Shape:
    """Models of one depth, with more or fewer heads."""

    def __init__(self, config: ModelConfig, layers: int) -> None:
        self._config = config
        self._layers = layers
        self._head_size = config.hidden_size // config.heads
        self._ratio = config.intermediate_size / config.hidden_size
        self._counts: dict[int, int] = {}

    def model(self, heads: int, intermediate: int | None = None) -> ModelConfig:
        width = heads * self._head_size
        return replace(
            self._config,
            layers=self._layers,
            heads=heads,
            hidden_size=width,
            intermediate_size=intermediate or max(1, round(width * self._ratio)),
        )

    def weights(self, heads: int) -> int:
        if heads not in self._counts:
            self._counts[heads] = count_weights(self.model(heads)).total
        return self._counts[heads]

    def nearest(self, wanted: int) -> int:
        """Return the number of heads that comes nearest to so many weights."""
        low, high = 1, 2
        while self.weights(high) <= wanted:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.weights(middle) <= wanted else (low, middle)
        return min((low, high), key=lambda heads: abs(self.weights(heads) - wanted))

    def fitted(self, heads: int, wanted: int) -> ModelConfig:
        """Choose the width inside the MLPs: the number of weights is linear in it."""
        usual = self.model(heads).intermediate_size
        more = count_weights(self.model(heads, usual + 1)).total - self.weights(heads)
        return self.model(heads, max(1, usual + round((wanted - self.weights(heads)) / more)))

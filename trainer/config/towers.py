"""The parts beside the language model: vision encoder, resampler, and norms of queries and keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, ConfigDict

from trainer.config.checks import require, require_between, require_count

QkNorm: TypeAlias = Literal["none", "layer_norm", "rms", "l2"]
"""How queries and keys are normalised, per head, before their dot product.

`layer_norm` and `rms` have learned scales (ViT-22B, arXiv:2302.05442); `l2` makes the score a
cosine times one learned number per block (arXiv:2010.04245).
"""
QK_NORMS: Final[tuple[str, ...]] = get_args(QkNorm)


def switched(published: QkNorm) -> Callable[[object], object]:
    """Return a reader of a norm that also knows `true`, the published one, and `false`, none."""

    def read(value: object) -> object:
        if isinstance(value, bool):
            return published if value else "none"
        return value

    return read


def require_qk_norm(name: str, value: str) -> None:
    """Refuse what is no norm.

    Raises:
        ConfigurationError: It is none.
    """
    require(value in QK_NORMS, name, value, f"one of {', '.join(QK_NORMS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """The vision encoder: a ViT over square pictures."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    image_size: int
    """Side of a picture in pixels; pictures are resized to it."""
    patch_size: int
    """Side of a patch in pixels; (image_size / patch_size)^2 + 1 vectors leave the encoder."""
    hidden_size: int
    """Width, also that of the resampler's latents."""
    intermediate_size: int
    """Width inside the MLP."""
    layers: int
    """Number of encoder layers."""
    heads: int
    """Attention heads; they divide the width."""
    attention_dropout: float = 0.0
    """Probability with which an attention weight is dropped while training."""
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    """Inside the MLP; OpenAI's CLIP has quick_gelu, LAION's (the published encoder) gelu."""

    def __post_init__(self) -> None:
        require_count("model.vision.patch_size", self.patch_size)
        require(
            self.image_size > 0 and self.image_size % self.patch_size == 0,
            "model.vision.image_size",
            self.image_size,
            f"a multiple of model.vision.patch_size ({self.patch_size})",
        )
        require_count("model.vision.hidden_size", self.hidden_size)
        require_count("model.vision.intermediate_size", self.intermediate_size)
        require_count("model.vision.layers", self.layers)
        require(
            self.heads > 0 and self.hidden_size % self.heads == 0,
            "model.vision.heads",
            self.heads,
            f"a divisor of model.vision.hidden_size ({self.hidden_size})",
        )
        require_between("model.vision.attention_dropout", self.attention_dropout, 0.0, 0.99)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResamplerConfig:
    """The Perceiver resampler: any number of patches to a fixed number of latents per picture."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    latents: int
    """Vectors per picture that the language model sees (64 in the published models)."""
    layers: int
    """Number of resampler blocks (6 in the published models)."""
    heads: int
    """Attention heads."""
    head_size: int
    """Width of a head."""
    qk_norm: Annotated[QkNorm, BeforeValidator(switched("layer_norm"))] = "layer_norm"
    """Norm of queries and keys, for stability; the published models have layer_norm (`true`)."""

    def __post_init__(self) -> None:
        require_count("model.resampler.latents", self.latents)
        require_count("model.resampler.layers", self.layers)
        require_count("model.resampler.heads", self.heads)
        require_count("model.resampler.head_size", self.head_size)
        require_qk_norm("model.resampler.qk_norm", self.qk_norm)

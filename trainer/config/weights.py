"""Where the weights come from, and which of them move when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, TypeAlias, get_args

from pydantic import ConfigDict

from trainer.config.checks import require, require_count

Part: TypeAlias = Literal[
    "language_layers",
    "language_norms",
    "embeddings",
    "head",
    "vision",
    "vision_norms",
    "resampler",
    "cross_attention",
    "gates",
    "new_tokens",
    "added_norms",
]
"""Every weight belongs to one part.

`language_layers` are the matrices of the decoder layers, `language_norms` their norms and the last
one; `vision` is the encoder without its norms, `vision_norms` those; `cross_attention` holds the
norms of its blocks and not their `gates`; `new_tokens` are the rows that `additional_tokens` puts
behind embeddings and head; `added_norms` are those that the norm knobs put into decoder layers.
"""
PARTS: Final[tuple[Part, ...]] = get_args(Part)

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
"""Number format that weights are held in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedConfig:
    """Weights to start from: safetensors in a local folder, or `owner/name[@revision]` on the hub.

    What is not named starts at random.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    language: str | None = None
    """A language model of Llama's kind: decoder layers, norms, embeddings and head."""
    vision: str | None = None
    """A CLIP, or its vision encoder alone."""
    whole: str | None = None
    """An IDEFICS; then neither of the others."""
    dtype: Dtype | None = None
    """Format that loaded weights are held in, embeddings aside; null: model.dtype. bfloat16 halves
    the memory of frozen parts; another format than that of the rest needs mixed precision
    (training.precision)."""

    def __post_init__(self) -> None:
        for name in ("language", "vision", "whole"):
            value = getattr(self, name)
            require(
                value is None or bool(value.strip()),
                f"model.pretrained.{name}",
                value,
                "a folder, owner/name on the hub, or null",
            )
        require(
            self.whole is None or (self.language is None and self.vision is None),
            "model.pretrained.whole",
            self.whole,
            "null beside model.pretrained.language or model.pretrained.vision",
        )

    @property
    def is_given(self) -> bool:
        """Whether anything is loaded."""
        return any(source is not None for source in (self.language, self.vision, self.whole))


@dataclass(frozen=True, kw_only=True, slots=True)
class UnfreezeConfig:
    """Frozen parts begin to learn at a step."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: int
    """Completed optimizer steps; the step after them is the first that moves the parts."""
    parts: tuple[Part, ...]
    """Which parts, each of them in model.freeze."""

    def __post_init__(self) -> None:
        require_count("model.unfreeze.step", self.step)
        require_parts("model.unfreeze.parts", self.parts)
        require(bool(self.parts), "model.unfreeze.parts", self.parts, "at least one part")


def require_parts(name: str, parts: tuple[str, ...]) -> None:
    """Refuse what is no part of the model, or named twice.

    Raises:
        ConfigurationError: There is such a one.
    """
    require(
        all(part in PARTS for part in parts) and len(set(parts)) == len(parts),
        name,
        parts,
        f"each once, of {', '.join(PARTS)}",
    )

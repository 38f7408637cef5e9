"""The architecture: IDEFICS as transformers has it, sizes and knobs.

The published sizes are those of the IDEFICS model cards; the names here say what the parts are, and
`trainer.module.architecture` translates them into the names of `transformers.IdeficsConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from trainer.config.checks import require, require_between, require_count, require_positive


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
    qk_norm: bool = True
    """Layer-normalise queries and keys per head; on in the published models, for stability."""

    def __post_init__(self) -> None:
        require_count("model.resampler.latents", self.latents)
        require_count("model.resampler.layers", self.layers)
        require_count("model.resampler.heads", self.heads)
        require_count("model.resampler.head_size", self.head_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The language model and the gated cross-attention that lets it see."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    vision: VisionConfig
    """The vision encoder."""
    resampler: ResamplerConfig
    """The Perceiver resampler."""
    vocabulary_size: int
    """Rows of the embedding and of the head; at least the tokenizer's vocabulary."""
    hidden_size: int
    """Width of the language model."""
    intermediate_size: int
    """Width inside the MLPs."""
    layers: int
    """Decoder layers of the language model."""
    heads: int
    """Attention heads; they divide the width into heads of even width (rotary embedding)."""
    cross_attention_every: int
    """A gated cross-attention block stands before every k-th decoder layer; divides `layers`."""
    max_positions: int
    """Longest sequence in tokens."""
    dropout: float = 0.0
    """Probability with which activations and attention weights are dropped while training."""
    qk_norm: bool = True
    """RMS-normalise queries and keys of the cross-attention, per head; published models do."""
    gate_initializer: Literal["zeros", "ones", "normal"] = "zeros"
    """Start of alpha; the gate is tanh(alpha). Zeros: the model starts as its language model."""
    gate_type: Literal["float", "vector"] = "float"
    """One gate per block, or one per channel."""
    gate_deviation: float = 0.0
    """Standard deviation of alpha at the start with gate_initializer normal."""
    initializer_range: float = 0.02
    """Standard deviation of the weight matrices at the start."""
    freeze_language: bool = False
    """Keep decoder layers, their norms and embeddings as they are; new blocks still learn."""
    freeze_vision: bool = False
    """Keep the vision encoder as it is."""
    freeze_head: bool = False
    """Keep the output head as it is."""

    def __post_init__(self) -> None:
        require_count("model.vocabulary_size", self.vocabulary_size, at_least=2)
        require_count("model.intermediate_size", self.intermediate_size)
        require_count("model.layers", self.layers)
        require(
            self.heads > 0 and self.hidden_size > 0 and self.hidden_size % (2 * self.heads) == 0,
            "model.heads",
            self.heads,
            f"a number that divides model.hidden_size ({self.hidden_size}) into even parts",
        )
        require(
            self.cross_attention_every > 0 and self.layers % self.cross_attention_every == 0,
            "model.cross_attention_every",
            self.cross_attention_every,
            f"a divisor of model.layers ({self.layers})",
        )
        require_count("model.max_positions", self.max_positions, at_least=2)
        require_between("model.dropout", self.dropout, 0.0, 0.99)
        require_between("model.gate_deviation", self.gate_deviation, 0.0, 10.0)
        require_positive("model.initializer_range", self.initializer_range)

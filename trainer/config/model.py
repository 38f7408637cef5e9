"""Configuration of the model: sizes, options, and pretrained weights.

The published sizes are those of the IDEFICS model cards. `trainer.module.architecture` translates
the names into those of `transformers.IdeficsConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Final, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from trainer.config.section import (
    SECTION,
    Count,
    Natural,
    Positive,
    Refusals,
    Section,
    agreement,
    refuse,
)

QkNorm: TypeAlias = Literal["none", "layer_norm", "rms", "l2"]
"""Norm of queries and keys, per head, before their dot product.

`layer_norm` and `rms` have learned scales (ViT-22B, arXiv:2302.05442); `l2` makes the score a
cosine times one learned number per block (arXiv:2010.04245).
"""


Dropout: TypeAlias = Annotated[float, Field(ge=0, le=0.99)]


def switched(published: QkNorm) -> Callable[[object], object]:
    """Return a reader of a norm that accepts `true` for the published one and `false` for none."""

    def read(value: object) -> object:
        if isinstance(value, bool):
            return published if value else "none"
        return value

    return read


@dataclass(frozen=True, kw_only=True, config=SECTION)
class VisionConfig(Section):
    """The vision encoder: a ViT over square pictures."""

    image_size: Count
    """Side of a picture in pixels; pictures are resized to it."""
    patch_size: Count
    """Side of a patch in pixels; (image_size / patch_size)^2 + 1 vectors leave the encoder."""
    hidden_size: Count
    """Width, also that of the resampler's latents."""
    intermediate_size: Count
    """Width inside the MLP."""
    layers: Count
    """Number of encoder layers."""
    heads: Count
    """Attention heads; must divide the width."""
    attention_dropout: Dropout = 0.0
    """Dropout probability of attention weights."""
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    """Activation of the MLP: quick_gelu in OpenAI's CLIP, gelu in the published encoder (LAION)."""

    @agreement
    def _patches_cover_the_picture(self) -> Refusals:
        if self.image_size % self.patch_size:
            yield "image_size", self.image_size, f"a multiple of patch_size ({self.patch_size})"

    @agreement
    def _heads_divide_the_width(self) -> Refusals:
        if self.hidden_size % self.heads:
            yield "heads", self.heads, f"a divisor of hidden_size ({self.hidden_size})"


@dataclass(frozen=True, kw_only=True, config=SECTION)
class ResamplerConfig(Section):
    """The Perceiver resampler: maps patches to a fixed number of latents per picture."""

    latents: Count
    """Vectors per picture that the language model sees (64 in the published models)."""
    layers: Count
    """Number of resampler blocks (6 in the published models)."""
    heads: Count
    """Attention heads."""
    head_size: Count
    """Width of a head."""
    qk_norm: Annotated[QkNorm, BeforeValidator(switched("layer_norm"))] = "layer_norm"
    """Norm of queries and keys; layer_norm (`true`) in the published models."""


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
"""Parts of the model; every weight belongs to exactly one.

`language_layers` are the matrices of the decoder layers, `language_norms` their norms and the last
one; `vision` is the encoder without its norms, `vision_norms` those; `cross_attention` holds the
norms of its blocks and not their `gates`; `new_tokens` are the rows that `additional_tokens` puts
behind embeddings and head; `added_norms` are those that the norm knobs put into decoder layers.
"""
PARTS: Final[tuple[Part, ...]] = get_args(Part)


def _check_parts(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    if len(set(parts)) < len(parts):
        raise refuse("each part once")
    return parts


def _check_origin(origin: str) -> str:
    if not origin.strip():
        raise refuse("a folder, owner/name on the hub, or null")
    return origin


Parts: TypeAlias = Annotated[tuple[Part, ...], AfterValidator(_check_parts)]
Origin: TypeAlias = Annotated[str, AfterValidator(_check_origin)]
Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
"""Number format of weights."""


@dataclass(frozen=True, kw_only=True, config=SECTION)
class PretrainedConfig(Section):
    """Pretrained weights: safetensors in a local folder, or `owner/name[@revision]` on the hub.

    All other weights are initialized randomly.
    """

    language: Origin | None = None
    """A language model of the Llama architecture: decoder layers, norms, embeddings and head."""
    vision: Origin | None = None
    """A CLIP model, or only its vision encoder."""
    whole: Origin | None = None
    """An IDEFICS model; excludes the other two."""
    dtype: Dtype | None = None
    """Number format of loaded weights, embeddings excluded; null: model.dtype. bfloat16 halves the
    memory of frozen parts. A format other than model.dtype requires mixed precision
    (training.precision)."""

    @agreement
    def _a_whole_model_comes_alone(self) -> Refusals:
        if self.whole is not None and (self.language is not None or self.vision is not None):
            yield "whole", self.whole, "null beside language or vision"

    @property
    def is_given(self) -> bool:
        """Whether anything is loaded."""
        return any(source is not None for source in (self.language, self.vision, self.whole))


@dataclass(frozen=True, kw_only=True, config=SECTION)
class UnfreezeConfig(Section):
    """Parts to unfreeze at a step."""

    step: Count
    """Completed optimizer steps; the next step is the first that updates the parts."""
    parts: Annotated[Parts, Field(min_length=1)]
    """The parts; each must be in model.freeze."""


Block: TypeAlias = Literal["language", "cross_attention"]
"""Decoder layers of the language model, or the gated blocks between them."""


@dataclass(frozen=True, kw_only=True, config=SECTION)
class ModelConfig(Section):
    """The language model and its gated cross-attention."""

    vision: VisionConfig
    """The vision encoder."""
    resampler: ResamplerConfig
    """The Perceiver resampler."""
    vocabulary_size: Annotated[int, Field(ge=2)]
    """Rows of embedding and head; with additional_tokens at least the size of the tokenizer."""
    hidden_size: Count
    """Width of the language model."""
    intermediate_size: Count
    """Width inside the MLPs."""
    layers: Count
    """Decoder layers of the language model."""
    layers_at_equal_size: Count | None = None
    """Trade depth for width: use this many layers with the same number of weights (within 1 %) by
    changing heads and widths of the language model. Null: the given sizes."""
    heads: Count
    """Attention heads; each must have an even width (rotary embedding)."""
    cross_attention_every: Count
    """A gated cross-attention block precedes every k-th decoder layer; must divide `layers`."""
    max_positions: Annotated[int, Field(ge=2)]
    """Longest sequence in tokens."""
    additional_tokens: Natural = 0
    """Rows after the vocabulary, for tokens that a pretrained model lacks; part `new_tokens`."""
    rope_theta: Positive = 10000.0
    """Base of the rotary embedding; take that of a pretrained language model."""
    norm_eps: Positive = 1e-6
    """Added to the mean square in RMS norms; take that of a pretrained language model."""
    dropout: Dropout = 0.0
    """Dropout probability of activations and attention weights."""
    qk_norm: Annotated[QkNorm, BeforeValidator(switched("rms"))] = "rms"
    """Norm of queries and keys in cross-attention; rms (`true`) in the published models."""
    self_attention_qk_norm: QkNorm = "none"
    """The same in the decoder layers, before the rotary embedding; none in the published models."""
    norm_after_o: tuple[Block, ...] = ()
    """Blocks with an RMS norm after the outer projection of attention (NormFormer)."""
    norm_after_fc2: tuple[Block, ...] = ()
    """Blocks with an RMS norm after the outer projection of the MLP."""
    gate_initializer: Literal["zeros", "ones", "normal"] = "zeros"
    """Initial alpha; the gate is tanh(alpha). zeros: the model starts as its language model."""
    gate_type: Literal["float", "vector"] = "float"
    """One gate per block, or one per channel."""
    gate_deviation: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Initial standard deviation of alpha with gate_initializer normal."""
    initializer_range: Positive = 0.02
    """Initial standard deviation of weight matrices."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Fused attention of torch, or plain matrix products, which keep all scores in memory."""
    activation_checkpointing: bool = False
    """Recompute the activations of every layer in the backward pass instead of keeping them: saves
    memory for about a third more time. The resampler keeps its activations."""
    dtype: Dtype = "float32"
    """Number format of the weights; keep float32 with mixed precision. float16 weights cannot learn
    with training.precision fp16, since their gradients cannot be unscaled."""
    pretrained: PretrainedConfig = field(default_factory=PretrainedConfig)
    """Pretrained weights; random by default."""
    freeze: Parts = ()
    """Frozen parts."""
    unfreeze: tuple[UnfreezeConfig, ...] = ()
    """Which frozen parts to unfreeze, and when."""

    @agreement
    def _heads_divide_the_width(self) -> Refusals:
        width = self.hidden_size
        if width % (2 * self.heads):
            allowed = f"a number that divides model.hidden_size ({width}) into even parts"
            yield "heads", self.heads, allowed

    @agreement
    def _blocks_divide_the_layers(self) -> Refusals:
        if self.layers % self.cross_attention_every:
            allowed = f"a divisor of model.layers ({self.layers})"
            yield "cross_attention_every", self.cross_attention_every, allowed

    @agreement
    def _blocks_divide_the_other_depth(self) -> Refusals:
        depth, every = self.layers_at_equal_size, self.cross_attention_every
        if depth is not None and depth % every:
            allowed = f"a multiple of model.cross_attention_every ({every})"
            yield "layers_at_equal_size", depth, allowed

    @agreement
    def _only_frozen_parts_unfreeze(self) -> Refusals:
        left = list(self.freeze)
        for part in (part for change in self.unfreeze for part in change.parts):
            if part not in left:
                allowed = f"parts of model.freeze that no other step unfreezes ({', '.join(left)})"
                yield "unfreeze.parts", part, allowed
            left = [other for other in left if other != part]

    @property
    def total_vocabulary(self) -> int:
        """Size of the vocabulary, additional tokens included."""
        return self.vocabulary_size + self.additional_tokens

    @property
    def has_two_formats(self) -> bool:
        """Whether loaded weights have another number format than the rest."""
        loaded = self.pretrained.dtype
        return self.pretrained.is_given and loaded not in (None, self.dtype)

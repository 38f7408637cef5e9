"""The architecture: IDEFICS as transformers has it, sizes, knobs, and where the weights come from.

The published sizes are those of the IDEFICS model cards; the names here say what the parts are, and
`trainer.module.architecture` translates them into the names of `transformers.IdeficsConfig`.
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
"""How queries and keys are normalised, per head, before their dot product.

`layer_norm` and `rms` have learned scales (ViT-22B, arXiv:2302.05442); `l2` makes the score a
cosine times one learned number per block (arXiv:2010.04245).
"""


Dropout: TypeAlias = Annotated[float, Field(ge=0, le=0.99)]


def switched(published: QkNorm) -> Callable[[object], object]:
    """Return a reader of a norm that also knows `true`, the published one, and `false`, none."""

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
    """Attention heads; they divide the width."""
    attention_dropout: Dropout = 0.0
    """Probability with which an attention weight is dropped while training."""
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    """Inside the MLP; OpenAI's CLIP has quick_gelu, LAION's (the published encoder) gelu."""

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
    """The Perceiver resampler: any number of patches to a fixed number of latents per picture."""

    latents: Count
    """Vectors per picture that the language model sees (64 in the published models)."""
    layers: Count
    """Number of resampler blocks (6 in the published models)."""
    heads: Count
    """Attention heads."""
    head_size: Count
    """Width of a head."""
    qk_norm: Annotated[QkNorm, BeforeValidator(switched("layer_norm"))] = "layer_norm"
    """Norm of queries and keys, for stability; the published models have layer_norm (`true`)."""


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
"""Number format that weights are held in."""


@dataclass(frozen=True, kw_only=True, config=SECTION)
class PretrainedConfig(Section):
    """Weights to start from: safetensors in a local folder, or `owner/name[@revision]` on the hub.

    What is not named starts at random.
    """

    language: Origin | None = None
    """A language model of Llama's kind: decoder layers, norms, embeddings and head."""
    vision: Origin | None = None
    """A CLIP, or its vision encoder alone."""
    whole: Origin | None = None
    """An IDEFICS; then neither of the others."""
    dtype: Dtype | None = None
    """Format that loaded weights are held in, embeddings aside; null: model.dtype. bfloat16 halves
    the memory of frozen parts; another format than that of the rest needs mixed precision
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
    """Frozen parts begin to learn at a step."""

    step: Count
    """Completed optimizer steps; the step after them is the first that moves the parts."""
    parts: Annotated[Parts, Field(min_length=1)]
    """Which parts, each of them in model.freeze."""


Block: TypeAlias = Literal["language", "cross_attention"]
"""Decoder layers of the language model, or the gated blocks between them."""


@dataclass(frozen=True, kw_only=True, config=SECTION)
class ModelConfig(Section):
    """The language model and the gated cross-attention that lets it see."""

    vision: VisionConfig
    """The vision encoder."""
    resampler: ResamplerConfig
    """The Perceiver resampler."""
    vocabulary_size: Annotated[int, Field(ge=2)]
    """Rows of the embedding and of the head; with additional_tokens at least the tokenizer's."""
    hidden_size: Count
    """Width of the language model."""
    intermediate_size: Count
    """Width inside the MLPs."""
    layers: Count
    """Decoder layers of the language model."""
    layers_at_equal_size: Count | None = None
    """Depth against width: train a model of so many layers instead, with as many weights (within
    1 %); heads and widths of the language model compensate. Null: the sizes as they are."""
    heads: Count
    """Attention heads; they divide the width into heads of even width (rotary embedding)."""
    cross_attention_every: Count
    """A gated cross-attention block precedes every k-th decoder layer; divides `layers`."""
    max_positions: Annotated[int, Field(ge=2)]
    """Longest sequence in tokens."""
    additional_tokens: Natural = 0
    """Rows after the vocabulary, for tokens that a pretrained model lacks; part `new_tokens`."""
    rope_theta: Positive = 10000.0
    """Base of the rotary embedding's wavelengths; a pretrained language model's own."""
    norm_eps: Positive = 1e-6
    """Added to the mean square in RMS norms; a pretrained language model's own."""
    dropout: Dropout = 0.0
    """Probability with which activations and attention weights are dropped while training."""
    qk_norm: Annotated[QkNorm, BeforeValidator(switched("rms"))] = "rms"
    """Norm of the cross-attention's queries and keys; the published models have rms (`true`)."""
    self_attention_qk_norm: QkNorm = "none"
    """The same in the decoder layers, before the rotation; none in the published models."""
    norm_after_o: tuple[Block, ...] = ()
    """Blocks with an RMS norm right after the attention's outer projection (NormFormer)."""
    norm_after_fc2: tuple[Block, ...] = ()
    """Blocks with an RMS norm right after the MLP's outer projection."""
    gate_initializer: Literal["zeros", "ones", "normal"] = "zeros"
    """Start of alpha; the gate is tanh(alpha). Zeros: the model starts as its language model."""
    gate_type: Literal["float", "vector"] = "float"
    """One gate per block, or one per channel."""
    gate_deviation: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Standard deviation of alpha at the start with gate_initializer normal."""
    initializer_range: Positive = 0.02
    """Standard deviation of the weight matrices at the start."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Torch's fused attention, or plain matrix products, which keep all scores in memory."""
    activation_checkpointing: bool = False
    """Compute the activations of every layer a second time in the backward pass, not keep them:
    memory for about a third more time. The resampler keeps its own."""
    dtype: Dtype = "float32"
    """Format of the weights; float32 also where training.precision computes in fewer bits. What is
    held in float16 cannot learn with training.precision fp16: its gradients cannot be unscaled."""
    pretrained: PretrainedConfig = field(default_factory=PretrainedConfig)
    """Weights to start from; none: random ones."""
    freeze: Parts = ()
    """Parts that keep their weights."""
    unfreeze: tuple[UnfreezeConfig, ...] = ()
    """Which of the frozen parts begin to learn, and when."""

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
        """Tokens that the model knows, additional ones included."""
        return self.vocabulary_size + self.additional_tokens

    @property
    def has_two_formats(self) -> bool:
        """Whether loaded weights are held in another format than the rest."""
        loaded = self.pretrained.dtype
        return self.pretrained.is_given and loaded not in (None, self.dtype)

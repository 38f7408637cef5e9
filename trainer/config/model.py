"""The architecture: IDEFICS as transformers has it, sizes and knobs.

The published sizes are those of the IDEFICS model cards; the names here say what the parts are, and
`trainer.module.architecture` translates them into the names of `transformers.IdeficsConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, ConfigDict

from trainer.config.checks import require, require_between, require_count, require_positive
from trainer.config.towers import (
    QkNorm,
    ResamplerConfig,
    VisionConfig,
    require_qk_norm,
    switched,
)
from trainer.config.weights import (
    Dtype,
    Part,
    PretrainedConfig,
    UnfreezeConfig,
    require_parts,
)

Block: TypeAlias = Literal["language", "cross_attention"]
"""Decoder layers of the language model, or the gated blocks between them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The language model and the gated cross-attention that lets it see."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    vision: VisionConfig
    """The vision encoder."""
    resampler: ResamplerConfig
    """The Perceiver resampler."""
    vocabulary_size: int
    """Rows of the embedding and of the head; with additional_tokens at least the tokenizer's."""
    hidden_size: int
    """Width of the language model."""
    intermediate_size: int
    """Width inside the MLPs."""
    layers: int
    """Decoder layers of the language model."""
    layers_at_equal_size: int | None = None
    """Depth against width: train a model of so many layers instead, with as many weights (within
    1 %); heads and widths of the language model make up for it. Null: the sizes as they are."""
    heads: int
    """Attention heads; they divide the width into heads of even width (rotary embedding)."""
    cross_attention_every: int
    """A gated cross-attention block stands before every k-th decoder layer; divides `layers`."""
    max_positions: int
    """Longest sequence in tokens."""
    additional_tokens: int = 0
    """Rows behind the vocabulary, for tokens that a pretrained model lacks; part `new_tokens`."""
    rope_theta: float = 10000.0
    """Base of the rotary embedding's wavelengths; a pretrained language model's own."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMS norms; a pretrained language model's own."""
    dropout: float = 0.0
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
    gate_deviation: float = 0.0
    """Standard deviation of alpha at the start with gate_initializer normal."""
    initializer_range: float = 0.02
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
    freeze: tuple[Part, ...] = ()
    """Parts that keep their weights."""
    unfreeze: tuple[UnfreezeConfig, ...] = ()
    """Which of the frozen parts begin to learn, and when."""

    def __post_init__(self) -> None:
        self._check_sizes()
        require_count("model.additional_tokens", self.additional_tokens, at_least=0)
        require_positive("model.rope_theta", self.rope_theta)
        require_positive("model.norm_eps", self.norm_eps)
        require_between("model.dropout", self.dropout, 0.0, 0.99)
        require_between("model.gate_deviation", self.gate_deviation, 0.0, 10.0)
        require_positive("model.initializer_range", self.initializer_range)
        require_qk_norm("model.qk_norm", self.qk_norm)
        require_qk_norm("model.self_attention_qk_norm", self.self_attention_qk_norm)
        require_parts("model.freeze", self.freeze)
        self._check_unfreeze()

    @property
    def total_vocabulary(self) -> int:
        """Tokens that the model knows, additional ones included."""
        return self.vocabulary_size + self.additional_tokens

    @property
    def has_two_formats(self) -> bool:
        """Whether loaded weights are held in another format than the rest."""
        loaded = self.pretrained.dtype
        return self.pretrained.is_given and loaded not in (None, self.dtype)

    def _check_sizes(self) -> None:
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
        depth = self.layers_at_equal_size
        require(
            depth is None or (depth > 0 and depth % max(self.cross_attention_every, 1) == 0),
            "model.layers_at_equal_size",
            depth,
            f"a multiple of model.cross_attention_every ({self.cross_attention_every})",
        )

    def _check_unfreeze(self) -> None:
        left = list(self.freeze)
        for change in self.unfreeze:
            for part in change.parts:
                require(
                    part in left,
                    "model.unfreeze.parts",
                    part,
                    f"parts of model.freeze that no other step unfreezes ({', '.join(left)})",
                )
                left = [other for other in left if other != part]

"""Norms against exploding scores and activations: of queries and keys, and after O and FC2.

Shape letters: B batch, S sequence, K keys, H heads, D head size, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.idefics.modeling_idefics import (
    IdeficsAttention,
    IdeficsForVisionText2Text,
    IdeficsMLP,
    IdeficsRMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from typing_extensions import override

from trainer.config import ModelConfig, QkNorm

_MIN_KEYS: Final = 2
"""log2(K^2 - K) needs two keys; a cosine of one key has nothing to choose from."""


class L2Norm(nn.Module):
    """Vectors of length 1 along the last axis, times one learned number where asked for.

    Args:
        start: Where the number starts; None for no number.
    """

    def __init__(self, start: float | None = None) -> None:
        super().__init__()
        self._start = start
        self.scale = None if start is None else nn.Parameter(torch.empty(1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Go back to the start."""
        if self.scale is not None and self._start is not None:
            self.scale.fill_(self._start)

    @override
    def forward(self, vectors: Tensor) -> Tensor:
        """Normalise [..., D] in float32."""
        unit = functional.normalize(vectors.float(), dim=-1).to(vectors.dtype)
        return unit if self.scale is None else unit * self.scale


class NormedAttention(IdeficsAttention):  # type: ignore[misc]  # transformers has no types
    """An attention with a norm after O, whose queries and keys may be normalised before rotation.

    transformers' own norms act after the rotation: right for a cross-attention, which has none; in
    a self-attention learned scales by channel would make scores depend on absolute positions.
    """

    o_norm: nn.Module

    @classmethod
    def around(cls, attention: IdeficsAttention) -> Self:
        """Reuse the projections of an attention, without copying or initializing weights."""
        with torch.device("meta"):
            normed = cls(
                hidden_size=attention.hidden_size,
                num_heads=attention.num_heads,
                dropout=attention.dropout,
                is_cross_attention=attention.is_cross_attention,
                config=attention.config,
                qk_layer_norms=attention.qk_layer_norms,
                layer_idx=attention.layer_idx,
            )
        for name, child in attention.named_children():
            setattr(normed, name, child)
        normed.o_norm = nn.Identity()
        normed.train(attention.training)
        return normed

    @override
    def forward(
        self, hidden_states: Tensor, key_value_states: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from [B, S, C] to itself, or to [B, K, C]."""
        if self.is_cross_attention or not hasattr(self, "q_layer_norm"):
            output, weights = super().forward(hidden_states, key_value_states, **options)
        else:
            output, weights = self._attend(hidden_states, **options)
        return self.o_norm(output), weights

    def _attend(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: object | None = None,
        **options: Any,  # noqa: ANN401  passed on as it is
    ) -> tuple[Tensor, Tensor | None]:
        """As the class before, but for the order of norm and rotation; training keeps no cache."""
        if past_key_values is not None:
            raise NotImplementedError("attention with norms before the rotation keeps no cache")
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, H, S, D]
        cosine, sine = self.rotary_emb(value, position_ids)
        query, key = apply_rotary_pos_emb(
            self.q_layer_norm(query), self.k_layer_norm(key), cosine, sine
        )
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation,  # noqa: SLF001  as every model of transformers does
            eager_attention_forward,
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            **options,
        )
        return self.o_proj(output.flatten(2)), weights


class NormedMLP(IdeficsMLP):  # type: ignore[misc]  # transformers has no types
    """An MLP with a norm after FC2."""

    fc2_norm: nn.Module

    @classmethod
    def around(cls, mlp: IdeficsMLP, norm: nn.Module) -> Self:
        """Reuse the projections of an MLP, without copying or initializing weights."""
        with torch.device("meta"):
            normed = cls(mlp.gate_proj.in_features, mlp.gate_proj.out_features, "silu")
        for name, child in mlp.named_children():
            setattr(normed, name, child)
        normed.fc2_norm = norm
        normed.train(mlp.training)
        return normed

    @override
    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map [B, S, C] to [B, S, C]."""
        normed: Tensor = self.fc2_norm(super().forward(hidden_states))
        return normed


def put_norms(model: IdeficsForVisionText2Text, config: ModelConfig) -> None:
    """Give a model the norms that transformers does not build; without such knobs nothing."""
    for layer in model.model.layers:
        _put_language_norms(layer, config)
    for block in model.model.gated_cross_attn_layers:
        _put_cross_attention_norms(block, config)
    if config.resampler.qk_norm in ("l2", "rms"):  # the others are transformers' own
        patches = (config.vision.image_size // config.vision.patch_size) ** 2 + 1
        for attention, _ in model.model.perceiver_resampler.blocks:
            _norm_queries_and_keys(
                attention,
                config.resampler.qk_norm,
                size=config.resampler.head_size,
                keys=patches + config.resampler.latents,
                eps=config.norm_eps,
            )
            attention.qk_layer_norms = True


def _put_language_norms(layer: Any, config: ModelConfig) -> None:  # noqa: ANN401  untyped module
    after_o = "language" in config.norm_after_o
    if after_o or config.self_attention_qk_norm != "none":
        layer.self_attn = NormedAttention.around(layer.self_attn)
        _norm_queries_and_keys(
            layer.self_attn,
            config.self_attention_qk_norm,
            size=config.hidden_size // config.heads,
            keys=config.max_positions,
            eps=config.norm_eps,
        )
    if after_o:
        layer.self_attn.o_norm = _outer_norm(config)
    if "language" in config.norm_after_fc2:
        layer.mlp = NormedMLP.around(layer.mlp, _outer_norm(config))


def _put_cross_attention_norms(block: Any, config: ModelConfig) -> None:  # noqa: ANN401  as above
    if config.qk_norm in ("l2", "layer_norm"):  # the others are transformers' own
        _norm_queries_and_keys(
            block.cross_attn,
            config.qk_norm,
            size=config.hidden_size // config.heads,
            keys=config.resampler.latents,
            eps=config.norm_eps,
        )
        block.cross_attn.qk_layer_norms = True
    if "cross_attention" in config.norm_after_o:
        block.cross_attn = NormedAttention.around(block.cross_attn)
        block.cross_attn.o_norm = _outer_norm(config)
    if "cross_attention" in config.norm_after_fc2:
        block.mlp = NormedMLP.around(block.mlp, _outer_norm(config))


def _outer_norm(config: ModelConfig) -> nn.Module:
    norm: nn.Module = IdeficsRMSNorm(config.hidden_size, eps=config.norm_eps)
    return norm


def reset_added_norms(model: nn.Module) -> None:
    """Start the norms that transformers does not know."""
    for module in model.modules():
        if isinstance(module, L2Norm):
            module.reset_parameters()


def _norm_queries_and_keys(
    attention: nn.Module, kind: QkNorm, *, size: int, keys: int, eps: float
) -> None:
    if kind == "none":
        return
    query: nn.Module
    key: nn.Module
    if kind == "l2":
        # The score is g * cosine, g starting at log2(K^2 - K) as in arXiv:2010.04245; the
        # attention divides scores by sqrt(D), which is taken back here.
        keys = max(keys, _MIN_KEYS)
        start = math.log2(keys * keys - keys) * math.sqrt(size)
        query, key = L2Norm(start), L2Norm()
    elif kind == "layer_norm":
        query, key = nn.LayerNorm(size), nn.LayerNorm(size)
    else:
        query, key = IdeficsRMSNorm(size, eps=eps), IdeficsRMSNorm(size, eps=eps)
    attention.add_module("q_layer_norm", query)
    attention.add_module("k_layer_norm", key)

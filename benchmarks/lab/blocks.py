"""The parts of small transformers, named as the agent's tables expect and open to its probes.

Attention goes through transformers' registry, where the agent observes it.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from typing_extensions import override


class Attention(nn.Module):
    """Multi-head attention over its own input, or over another sequence.

    Args:
        width: Size of the residual stream.
        heads: Number of heads.
        causal: Position i sees no later one.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.config = SimpleNamespace(_attn_implementation="sdpa")
        self.is_causal = causal
        self._heads = heads

    @override
    def forward(self, inputs: Tensor, memory: Tensor | None = None) -> Tensor:
        source = inputs if memory is None else memory
        attend = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None)
        output, _ = attend(
            self,
            self._by_head(self.q_proj(inputs)),
            self._by_head(self.k_proj(source)),
            self._by_head(self.v_proj(source)),
            None,
            dropout=0.0,
            scaling=(inputs.shape[-1] // self._heads) ** -0.5,
        )
        return self.o_proj(output.reshape(inputs.shape))

    def _by_head(self, tensor: Tensor) -> Tensor:
        batch, length, width = tensor.shape
        return tensor.view(batch, length, self._heads, width // self._heads).transpose(1, 2)


class Mlp(nn.Module):
    """Two projections with a GELU between them."""

    def __init__(self, width: int, factor: int = 3) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, factor * width)
        self.fc2 = nn.Linear(factor * width, width)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(inputs)))


class Block(nn.Module):
    """A pre-norm transformer block, with cross-attention if it has a memory to read.

    Args:
        width: Size of the residual stream.
        heads: Number of heads.
        causal: Whether its self-attention is.
        crossed: Whether it reads a memory.
    """

    def __init__(
        self, width: int, heads: int, *, causal: bool = False, crossed: bool = False
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.self_attn = Attention(width, heads, causal=causal)
        self.memory_norm = nn.LayerNorm(width) if crossed else None
        self.encoder_attn = Attention(width, heads) if crossed else None
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    @override
    def forward(self, inputs: Tensor, memory: Tensor | None = None) -> Tensor:
        hidden = inputs + self.self_attn(self.attention_norm(inputs))
        if self.encoder_attn is not None and self.memory_norm is not None:
            hidden = hidden + self.encoder_attn(self.memory_norm(hidden), memory)
        return hidden + self.mlp(self.mlp_norm(hidden))


class Stack(nn.Module):
    """Blocks with a norm behind them."""

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        *,
        causal: bool = False,
        crossed: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Block(width, heads, causal=causal, crossed=crossed) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    @override
    def forward(self, hidden: Tensor, memory: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, memory)
        return self.norm(hidden)


class TextEmbedding(nn.Module):
    """Tokens and learned positions."""

    def __init__(self, vocabulary: int, width: int, positions: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(positions, width))

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        return self.tokens(tokens) + self.positions[: tokens.shape[1]]


@torch.no_grad()
def initialize(model: nn.Module, deviation: float = 0.02) -> None:
    """Draw GPT-2's initial weights: outer projections are smaller by the depth."""
    outer = [
        name
        for name, _ in model.named_parameters()
        if name.endswith(("o_proj.weight", "fc2.weight"))
    ]
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        scale = 1 / math.sqrt(len(outer)) if name in outer else 1.0
        parameter.normal_(std=max(deviation, 0.5 / math.sqrt(parameter.shape[-1] * 4)) * scale)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()

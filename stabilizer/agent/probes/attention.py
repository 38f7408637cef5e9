"""Entropy and largest logit of an attention, from its queries, keys and mask.

Statistics use a fixed, evenly spaced sample of query positions: every `stride`-th counted back from
the last, which sees the most keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from stabilizer.agent.probes.reductions import MAX_CHUNK_ELEMENTS, is_measurable

_HIDDEN: Final = -9_000.0
"""An additive mask at or below this hides the key: its weight is 0 in any precision."""

_MASKED_SCORE: Final = -1e30
"""Added to the score of a hidden key. Finite, so that its weight 0 times its log is 0, not NaN."""


@dataclass(frozen=True, slots=True)
class Masking:
    """Which keys a query sees, and what is added to its logits.

    Args:
        mask: None; bool, True for visible, shape [B or 1, H or 1, Q, K]; float, added to the
            logits, very large negative where hidden, same shape; or shape [B, K], nonzero for
            visible.
        causal: Without a mask, query i sees no key after i + `offset`.
        offset: 0 aligns queries and keys at the first position; K - Q at the last.
        window: Keys that a query sees at most, itself included; None for all.
        softcap: Logits become softcap * tanh(logits / softcap).
    """

    mask: Tensor | None = None
    causal: bool = False
    offset: int = 0
    window: int | None = None
    softcap: float | None = None


@torch.no_grad()
def summarize(
    query: Tensor, key: Tensor, scale: float | Tensor, masking: Masking, max_queries: int
) -> Tensor:
    """Summarize an attention in a form that can be added over microbatches.

    The entropy excludes queries with fewer than two visible keys. The largest logit is over the
    visible keys of every sampled query, before mask and cap.

    Args:
        query: Shape [B, H, Q, D], no dimension 0.
        key: Shape [B, H / G, K, D]; G query heads share one key head.
        scale: Factor of the dot products; a tensor of one element is not waited for.
        masking: Which keys are visible.
        max_queries: Query positions to sample, at least 1.

    Returns:
        Shape [2 H + 2], float32: for each head the sum over queries of H(p) / log(visible keys);
        for each head the number of those queries; the largest scaled logit; the number of visible
        pairs of query and key. Where a number is 0, the value it belongs to is undefined.
    """
    batch, heads, positions, _ = query.shape
    stride = -(-positions // max_queries)
    first = (positions - 1) % stride
    sample = query[:, :, first::stride]
    mask = None if masking.mask is None else _sampled_mask(masking.mask, first, stride)
    rows = torch.arange(first, positions, stride, device=query.device)
    size = max(1, MAX_CHUNK_ELEMENTS // (heads * sample.shape[2] * key.shape[2]))
    parts = [
        _summarize_chunk(
            sample[start : start + size],
            key[start : start + size],
            scale,
            _visible(mask, masking, rows, key.shape[2], slice(start, start + size)),
            masking,
        )
        for start in range(0, batch, size)
    ]
    return _combined(parts)


def _combined(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    stacked = torch.stack(parts)
    total = stacked.sum(dim=0)
    total[-2] = stacked[:, -2].amax()
    return total


def _summarize_chunk(
    query: Tensor,
    key: Tensor,
    scale: float | Tensor,
    seen: tuple[Tensor | None, Tensor | None],
    masking: Masking,
) -> Tensor:
    """Shapes as in `summarize`, with the sampled queries only."""
    visible, bias = seen
    batch, heads, positions, _ = query.shape
    logits = _logits(query.float(), key.float()) * scale
    scores = logits
    if masking.softcap is not None:
        scores = masking.softcap * torch.tanh(logits / masking.softcap)
    if visible is None:
        pairs = logits.new_full((), logits.numel())
        keys = logits.new_full((1, 1, positions), logits.shape[-1])
    else:
        keys = visible.expand(batch, -1, positions, logits.shape[-1]).sum(dim=-1).float()
        pairs = keys.sum() * (heads / keys.shape[1])
        penalty = torch.zeros_like(visible, dtype=logits.dtype).masked_fill(~visible, _MASKED_SCORE)
        logits = logits + penalty
        scores = scores + (penalty if bias is None else penalty + bias)
    counted = (keys >= 2).expand(batch, heads, positions)
    normalised = _entropy(scores) / keys.clamp(min=2).log()
    sums = torch.where(counted, normalised, 0.0).sum(dim=(0, 2))
    counts = counted.sum(dim=(0, 2)).float()
    return torch.cat([sums, counts, torch.stack([logits.amax(), pairs])])


def _entropy(scores: Tensor) -> Tensor:
    """Entropy in nats of the softmax over the last axis.

    Computes the softmax twice: `exp` of the logarithms is slow where it underflows.
    """
    return -(scores.softmax(dim=-1) * scores.log_softmax(dim=-1)).sum(dim=-1)


def _logits(query: Tensor, key: Tensor) -> Tensor:
    """Return dot products, shape [B, H, Q, K], without repeating shared keys."""
    batch, heads, positions, dim = query.shape
    groups = heads // key.shape[1]
    folded = query.reshape(batch, key.shape[1], groups * positions, dim)
    return torch.matmul(folded, key.transpose(-1, -2)).reshape(batch, heads, positions, -1)


def _sampled_mask(mask: Tensor, first: int, stride: int) -> Tensor:
    """Shape [B or 1, H or 1, sampled queries or 1, K]."""
    if mask.dim() == 2:
        return (mask != 0)[:, None, None, :]
    return mask if mask.shape[2] == 1 else mask[:, :, first::stride]


def _visible(
    mask: Tensor | None, masking: Masking, rows: Tensor, num_keys: int, chunk: slice
) -> tuple[Tensor | None, Tensor | None]:
    """Return visible keys (None for all) and what to add to the logits; both broadcast."""
    visible = bias = None
    if mask is not None:
        mask = mask[..., :num_keys] if mask.shape[0] == 1 else mask[chunk, ..., :num_keys]
        if mask.dtype is torch.bool:
            visible = mask
        else:
            visible = mask > _HIDDEN
            bias = mask.float().masked_fill(~visible, 0.0)
    if masking.causal or masking.window is not None:
        behind = (rows[:, None] + masking.offset) - torch.arange(num_keys, device=rows.device)
        allowed = behind >= 0 if masking.causal else torch.ones_like(behind, dtype=torch.bool)
        if masking.window is not None:
            allowed = allowed & (behind < masking.window)
        visible = allowed[None, None] if visible is None else visible & allowed
    return visible, bias


def fits(query: object, key: object, mask: object) -> bool:
    """Return whether these have shapes that `summarize` supports."""
    if not (is_measurable(query) and is_measurable(key) and query.dim() == key.dim() == 4):
        return False
    batch, heads, positions, dim = query.shape
    if key.shape[0] != batch or key.shape[3] != dim or heads % key.shape[1]:
        return False
    if mask is None:
        return True
    if not isinstance(mask, Tensor) or mask.is_nested or mask.shape[-1] < key.shape[2]:
        return False
    if mask.dim() == 2:
        return mask.shape[0] in (1, batch)
    return (
        mask.dim() == 4
        and (mask.dtype is torch.bool or mask.is_floating_point())
        and mask.shape[0] in (1, batch)
        and mask.shape[1] in (1, heads)
        and mask.shape[2] in (1, positions)
    )

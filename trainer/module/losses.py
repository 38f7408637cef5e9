"""Losses of a batch, exact over ranks and microbatches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

IGNORED_LABEL = -100  # torch.nn.functional.cross_entropy's ignore_index


class DocumentLosses(NamedTuple):
    """What is known of each of D documents, on the device of the logits."""

    means: Tensor
    """[D] float32, mean cross-entropy; NaN too where nothing is predicted."""
    tokens: Tensor
    """[D] float32, how many tokens are predicted: separates the two kinds of NaN."""


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """Losses per predicted token, before any mean."""

    cross_entropy: Tensor
    """[B, S-1] float32; 0 where nothing is predicted."""
    z: Tensor
    """[B, S-1] float32: logsumexp(logits)^2, as in PaLM; 0 where nothing is predicted."""
    counted: Tensor
    """[B, S-1] bool: where a token is predicted."""

    def mean(self, values: Tensor, where: Tensor | None = None) -> Tensor:
        """Return the mean over predicted tokens; 0 where there is none.

        Args:
            values: `cross_entropy` or `z`.
            where: [B, S-1] bool, which tokens to take; all by default.
        """
        counted = self.counted if where is None else self.counted & where
        kept = torch.where(counted, values, 0.0)
        return kept.sum() / counted.sum().clamp(min=1)

    @torch.no_grad()
    def per_document(self, document_ids: Tensor, documents: int) -> DocumentLosses:
        """Return the mean cross-entropy of every document, and of how many tokens it is.

        Args:
            document_ids: [B, S] int64, the number of each token's document, negative at padding.
            documents: Their number, D.

        Returns:
            Both [D], on the same device; no host synchronisation.
        """
        # Tokens that are not counted go to one extra document, which is dropped.
        owner = torch.where(self.counted, document_ids[:, 1:], documents).flatten()
        sums = self.cross_entropy.new_zeros(documents + 1)
        counts = torch.zeros_like(sums)
        sums.index_add_(0, owner, self.cross_entropy.detach().flatten())
        counts.index_add_(0, owner, torch.ones_like(self.cross_entropy).flatten())
        return DocumentLosses((sums / counts)[:documents], counts[:documents])


def token_losses(logits: Tensor, labels: Tensor) -> TokenLosses:
    """Compare each position's logits with the next token.

    Args:
        logits: [B, S, V], any floating type.
        labels: [B, S] int64, not shifted; IGNORED_LABEL where nothing is predicted.
    """
    logits = logits[:, :-1].float()
    targets = labels[:, 1:]
    counted = targets != IGNORED_LABEL
    cross_entropy = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    ).view_as(targets)
    z = torch.where(counted, logits.logsumexp(dim=-1).square(), 0.0)
    return TokenLosses(cross_entropy=cross_entropy, z=z, counted=counted)


@dataclass(frozen=True, slots=True)
class RankLosses:
    """What the ranks have together; the same numbers on each of them."""

    loss: Tensor
    """[] float32: cross-entropy per predicted token of all ranks."""
    z_loss: Tensor
    """[] float32: likewise."""
    weight: Tensor
    """[] float32: by which this rank's mean is multiplied, so that the mean over ranks, which DDP
    and FSDP take of gradients, is the mean over all tokens."""


@torch.no_grad()
def reduce_losses(losses: TokenLosses) -> RankLosses | None:
    """Add up the losses of all ranks; None where there is but one.

    One small collective per microbatch, without waiting for the device. Ranks with less text would
    otherwise pull harder, and a run would depend on how many processes it has.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    own = losses.counted.sum()
    sums = torch.stack([losses.cross_entropy.sum().double(), losses.z.sum().double(), own.double()])
    dist.all_reduce(sums)
    loss, z_loss, count = sums.unbind()
    count = count.clamp(min=1)
    weight = own * dist.get_world_size() / count
    return RankLosses((loss / count).float(), (z_loss / count).float(), weight.float())

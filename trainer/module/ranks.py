"""Losses over all ranks: the mean over all tokens, not a mean of means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.module.losses import TokenLosses


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

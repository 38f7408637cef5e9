"""The four families: a GPT, a ViT, an encoder-decoder, and the trainer's IDEFICS in miniature.

A family makes a model, has the data for it, and computes the loss of every sample. Sizes are drawn
with the seed, so that runs of a family differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from benchmarks.lab import corpora
from benchmarks.lab.blocks import Stack, TextEmbedding, initialize
from benchmarks.lab.corpora import CLASSES, TEXT_LENGTH, VOCABULARY, Pools
from trainer.config import load_config
from trainer.module.architecture import build_model

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """Sizes of a model."""

    width: int
    depth: int
    heads: int = 4


class LanguageModel(nn.Module):
    """A GPT."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = TextEmbedding(VOCABULARY, size.width, TEXT_LENGTH)
        self.decoder = Stack(size.width, size.heads, size.depth, causal=True)
        self.lm_head = nn.Linear(size.width, VOCABULARY, bias=False)
        initialize(self)

    @override
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens = batch["tokens"]
        return self.lm_head(self.decoder(self.embedding(tokens[:, :-1]))), tokens[:, 1:]


class ImageClassifier(nn.Module):
    """A ViT whose class is read from the mean over its patches."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, size.width, 4, stride=4)
        self.positions = nn.Parameter(torch.zeros(16, size.width))
        self.encoder = Stack(size.width, size.heads, size.depth)
        self.lm_head = nn.Linear(size.width, CLASSES)
        initialize(self)

    @override
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        patches = self.patch_embedding(batch["images"]).flatten(2).transpose(1, 2)
        hidden = self.encoder(patches + self.positions).mean(dim=1, keepdim=True)
        return self.lm_head(hidden), batch["labels"][:, None]


class Translator(nn.Module):
    """An encoder and a decoder that reads it by cross-attention."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = TextEmbedding(VOCABULARY + 1, size.width, TEXT_LENGTH)
        self.encoder = Stack(size.width, size.heads, size.depth)
        self.decoder = Stack(size.width, size.heads, size.depth, causal=True, crossed=True)
        self.lm_head = nn.Linear(size.width, VOCABULARY, bias=False)
        initialize(self)

    @override
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        target = batch["target"]
        memory = self.encoder(self.embedding(batch["source"]))
        begun = functional.pad(target[:, :-1], (1, 0), value=VOCABULARY)
        return self.lm_head(self.decoder(self.embedding(begun), memory)), target


_IMAGE_TOKEN: Final = VOCABULARY
_IDEFICS: Final[dict[str, object]] = {
    "model.vocabulary_size": VOCABULARY,
    "model.layers": 2,
    "model.cross_attention_every": 1,
    "model.max_positions": 40,
    "model.vision.hidden_size": 24,
    "model.vision.intermediate_size": 48,
    "model.vision.layers": 1,
    "model.vision.heads": 2,
    "model.resampler.latents": 4,
    "model.resampler.layers": 1,
    "model.resampler.heads": 2,
    "model.resampler.head_size": 12,
}


class Idefics(nn.Module):
    """The trainer's IDEFICS with one picture before every text."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        fields = _IDEFICS | {
            "model.hidden_size": size.width,
            "model.intermediate_size": 2 * size.width,
            "model.heads": size.heads,
        }
        self.model = build_model(load_config("idefics-tiny", fields=fields).model)

    @override
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens = batch["tokens"]
        output = self.model(
            input_ids=tokens[:, :-1],
            pixel_values=batch["images"][:, None],
            image_attention_mask=tokens.new_ones(len(tokens), tokens.shape[1] - 1, 1),
        )
        return output.logits, tokens[:, 1:]


@dataclass(frozen=True)
class Family:
    """One architecture and its data.

    Args:
        name: Its name; splits are made by it.
        split: Whether its runs set rules (`fit`) or test them (`test`).
        make: Builds the model from torch's global random state.
        pools: The sources, for a seed.
        sizes: What is drawn from.
        rates: The learning rate for each optimizer.
        batch: Samples of a step.
    """

    name: str
    split: str
    make: Callable[[Size], nn.Module]
    pools: Callable[[int], Pools]
    sizes: tuple[Size, ...]
    rates: Mapping[str, float]
    batch: int


def sample_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of every sample, [B], and the z-loss, []."""
    logits, targets = model(batch)
    logits = logits.float()
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    z = logits.logsumexp(dim=-1).square().mean()
    return losses.view(targets.shape).mean(dim=1), z


FAMILIES: Final = {
    family.name: family
    for family in (
        Family(
            name="gpt",
            split="fit",
            make=LanguageModel,
            pools=corpora.text_pools,
            sizes=(Size(32, 3), Size(48, 2), Size(32, 4)),
            rates={"adamw": 6e-3, "sgd": 0.15, "lion": 2e-3, "muon": 0.02},
            batch=6,
        ),
        Family(
            name="vit",
            split="fit",
            make=ImageClassifier,
            pools=corpora.image_pools,
            sizes=(Size(32, 3), Size(48, 2), Size(32, 4)),
            rates={"adamw": 5e-3, "sgd": 0.2, "lion": 2e-3, "muon": 0.02},
            batch=6,
        ),
        Family(
            name="encoder_decoder",
            split="test",
            make=Translator,
            pools=corpora.pair_pools,
            sizes=(Size(32, 2), Size(48, 1), Size(48, 2)),
            rates={"adamw": 5e-3, "sgd": 0.15, "lion": 1e-3, "muon": 0.01},
            batch=6,
        ),
        Family(
            name="idefics",
            split="test",
            make=Idefics,
            pools=corpora.caption_pools,
            sizes=(Size(32, 2), Size(48, 2)),
            rates={"adamw": 5e-3, "sgd": 0.1, "lion": 2e-3, "muon": 0.01},
            batch=6,
        ),
    )
}

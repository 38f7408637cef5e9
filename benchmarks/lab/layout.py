"""A model's parameters as rows of one matrix, so that many copies of it train together.

A row holds every parameter of a copy, one after the other. Optimizers, faults and snapshots work on
rows; the model reads views of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stabilizer.agent.probes.catalogs import PROJECTIONS
from stabilizer.agent.probes.naming import Site, describe
from stabilizer.protocol.metrics import Kind


@dataclass(frozen=True)
class Part:
    """A module whose weights are measured and may be struck: its labels and its columns."""

    labels: dict[str, str]
    columns: Tensor

    @property
    def kind(self) -> str:
        """Its role; `embedding` beside those of the agent."""
        return self.labels["kind"]

    @property
    def layer(self) -> int:
        """Index of its block; 0 for what is in none."""
        return int(self.labels.get("layer", 0))


class Layout:
    """Where each parameter of a model lies in a row."""

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_parameters())
        self.names = [name for name, _ in named]
        self.shapes = [parameter.shape for _, parameter in named]
        self.sizes = [parameter.numel() for _, parameter in named]
        self.width = sum(self.sizes)
        starts = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        self._columns = {
            parameter: torch.arange(start, start + parameter.numel())
            for (_, parameter), start in zip(named, starts, strict=False)
        }
        self.parts = _parts(model, self._columns)
        embeddings = {
            parameter
            for module in model.modules()
            if isinstance(module, nn.Embedding)
            for parameter in module.parameters()
        }
        self.inner: list[tuple[slice, torch.Size]] = []
        """Matrices inside blocks, for optimizers that treat them apart."""
        self.decayed = torch.zeros(self.width)
        for (name, parameter), start in zip(named, starts, strict=False):
            place = slice(start, start + parameter.numel())
            if parameter.ndim >= 2 and parameter not in embeddings:
                self.decayed[place] = 1.0
                if parameter.ndim == 2 and ".layers." in f".{name}":
                    self.inner.append((place, parameter.shape))

    def views(self, row: Tensor) -> dict[str, Tensor]:
        """Return the parameters in a row, [P], by name."""
        parts = row.split(self.sizes)
        return {
            name: part.view(shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    @torch.no_grad()
    def row_of(self, model: nn.Module) -> Tensor:
        """Return a model's parameters as a row, [P]."""
        return torch.cat([parameter.reshape(-1) for parameter in model.parameters()])

    def attach(self, model: nn.Module, row: Tensor, gradients: Tensor) -> None:
        """Let a model live in a row, and its gradients in another."""
        weights, grads = self.views(row), self.views(gradients)
        for name, parameter in model.named_parameters():
            parameter.data = weights[name]
            parameter.grad = grads[name]

    def columns_of(self, kind: str, layer: int | None = None) -> Tensor:
        """Return the columns of the modules of a kind, of one layer or of all."""
        found = [p.columns for p in self.parts if p.kind == kind and layer in (None, p.layer)]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.long)


def _parts(model: nn.Module, columns: dict[nn.Parameter, Tensor]) -> list[Part]:
    sites: Iterable[Site] = describe(model)
    kinds = PROJECTIONS | {Kind.V_PROJ, Kind.FC1, Kind.HEAD}
    parts = [
        Part(site.labels, torch.cat([columns[each] for each in site.module.parameters()]))
        for site in sites
        if site.kind in kinds
    ]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" not in name:
            labels = {"module": name, "kind": "embedding"}
            owned = [columns[each] for each in module.parameters()]
            parts.append(Part(labels, torch.cat(owned)))
    return parts

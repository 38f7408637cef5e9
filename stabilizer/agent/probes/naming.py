"""The roles of a model's modules, whatever its architecture calls them.

A rule says "outer projections of the bottom layers" once for every architecture: names like
`model.layers.3.mlp.down_proj`, `h.3.mlp.c_proj` and `encoder.layer.3.output.dense` all become kind
fc2, layer 3. Modules that no table knows are left out: a missing series is better than a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from torch import nn

from stabilizer.errors import ConfigurationError
from stabilizer.protocol.metrics import Kind, Tower

_WRAPPERS: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Path components that wrappers put between a module and its parent."""

_ROOT_WRAPPERS: Final = frozenset({"module", "model"})
"""An only child of these names at the root: DistributedDataParallel, a LightningModule."""

_QUERY: Final = frozenset({"q_proj", "q", "query", "wq", "to_q", "q_lin"})
_KEY: Final = frozenset({"k_proj", "k", "key", "wk", "to_k", "k_lin"})
_VALUE: Final = frozenset({"v_proj", "v", "value", "wv", "to_v", "v_lin"})
_FUSED: Final = frozenset({"c_attn", "qkv", "query_key_value", "qkv_proj", "in_proj", "Wqkv"})
_OUT: Final = frozenset({"o_proj", "out_proj", "output_proj", "to_out", "out_lin"})
_OUT_IN_ATTENTION: Final = frozenset({"o", "wo", "dense", "proj", "c_proj"})
"""Outer projections only where the parent is an attention."""
_FC1: Final = frozenset(
    {"fc1", "c_fc", "up_proj", "gate_proj", "linear1", "lin1", "wi", "dense_h_to_4h"}
)
_FC2: Final = frozenset({"fc2", "down_proj", "linear2", "lin2", "dense_4h_to_h"})
_FC1_IN_MLP: Final = frozenset({"fc", "w1", "w3"})
_FC2_IN_MLP: Final = frozenset({"c_proj", "w2", "wo"})
"""Projections of an MLP only where the parent is not an attention."""

_GATES: Final = frozenset(
    {"alpha_cross_attn", "alpha_dense", "attn_gate", "ff_gate"}
    | {"cross_attn_attn_gate", "cross_attn_mlp_gate"}
)
"""Parameters whose tanh scales a gated cross-attention block: IDEFICS, OpenFlamingo, Mllama."""

_HEADS: Final = frozenset({"lm_head", "embed_out"})

_BLOCK_LISTS: Final = frozenset(
    {"layers", "layer", "blocks", "block", "h", "resblocks", "encoder_layers", "decoder_layers"}
    | {"gated_cross_attn_layers", "gated_cross_attention_layers"}
)

_TOWER_CLUES: Final[tuple[tuple[Tower, re.Pattern[str]], ...]] = (
    (Tower.RESAMPLER, re.compile(r"perceiver|resampler|qformer|abstractor")),
    (Tower.VISION, re.compile(r"vision|visual|image_encoder|(\A|[._])vit([._]|\Z)")),
    (
        Tower.CROSS_ATTENTION,
        re.compile(r"cross_?att|encoder_attn|EncDecAttention|multihead_attn"),
    ),
)
"""In order of precedence: a cross-attention inside a resampler belongs to the resampler."""


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A part of the model that can be measured.

    Args:
        name: Dotted name without wrappers.
        kind: Its role.
        layer: Index of its block, from 0; a gated cross-attention block counts its own blocks.
        tower: Its tower.
        module: The module; for a gate, its parent.
        parameter: The gate itself.
        observed: The module whose output to measure: the parent for an output projection that is
            used without being called (`nn.MultiheadAttention`), else the module itself.
    """

    name: str
    kind: Kind
    layer: int | None
    tower: Tower
    module: nn.Module
    observed: nn.Module
    parameter: nn.Parameter | None = None

    @property
    def labels(self) -> dict[str, str]:
        """Labels of every series measured here."""
        labels = {"module": self.name, "tower": self.tower.value, "kind": self.kind.value}
        if self.layer is not None:
            labels["layer"] = str(self.layer)
        return labels


def describe(model: nn.Module) -> list[Site]:
    """List the sites of a model, in the model's own order.

    Shared modules are listed once, under their first name; a wrapped module once, as its wrapper.
    """
    default = _default_tower(model)
    parents = {"": model, **dict(model.named_modules())}
    strip = _root_prefix(model)
    sites: list[Site] = []
    for path, module in model.named_modules():
        name = canonical_name(path.removeprefix(strip))
        if not name:
            continue
        holder = parents[path.rpartition(".")[0]]
        kind = _kind(name, module, holder)
        layer = _layer(name)
        is_known = any(site.name == name for site in sites[-1:])  # a wrapper comes just before
        if kind is not None and (layer is not None or kind is Kind.HEAD) and not is_known:
            observed = holder if isinstance(holder, nn.MultiheadAttention) else module
            tower = _tower(path, default)
            sites.append(Site(name, kind, layer, tower, module, observed))
        sites.extend(_gates(name, module, layer, _tower(path, default)))
    return sites


def find_head(model: nn.Module, name: str | None) -> nn.Module | None:
    """Find the module whose outputs are the logits of a language model.

    Args:
        model: The model.
        name: Its dotted name, with or without wrappers; None tries the common names.

    Raises:
        ConfigurationError: No module has that name.
    """
    strip = _root_prefix(model)
    module: nn.Module
    for path, module in model.named_modules():
        short = canonical_name(path.removeprefix(strip))
        if name is None and short.rpartition(".")[2] in _HEADS:
            return module
        if name is not None and path and name in {path, short}:
            return module
    if name is not None:
        raise ConfigurationError(f"head is {name!r}; allowed: the dotted name of a module")
    return None


def canonical_name(path: str) -> str:
    """Remove the components that wrappers add to a dotted path."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def _root_prefix(model: nn.Module) -> str:
    """Return the dotted prefix of wrappers around the model, with its trailing dot."""
    prefix, root = "", model
    while True:
        own = next(root.parameters(recurse=False), None) is not None
        children = [
            (name, child)
            for name, child in root.named_children()
            if next(child.parameters(), None) is not None
        ]
        if own or len(children) != 1 or children[0][0] not in _ROOT_WRAPPERS | _WRAPPERS:
            return prefix
        prefix += children[0][0] + "."
        root = children[0][1]


def _kind(name: str, module: nn.Module, holder: nn.Module) -> Kind | None:
    leaf = name.rpartition(".")[2]
    if is_attention(module):
        return Kind.ATTENTION
    if next(module.parameters(), None) is None:
        return None
    if leaf in _HEADS:
        return Kind.HEAD
    in_attention = is_attention(holder) or _is_attention_output(name)
    return _projection_kind(leaf, in_attention=in_attention) or _bert_mlp_kind(name, in_attention)


def _projection_kind(leaf: str, *, in_attention: bool) -> Kind | None:
    if in_attention:
        table = {Kind.Q_PROJ: _QUERY, Kind.K_PROJ: _KEY, Kind.V_PROJ: _VALUE}
        table[Kind.O_PROJ] = _OUT | _OUT_IN_ATTENTION
    else:
        table = {Kind.FC1: _FC1 | _FC1_IN_MLP, Kind.FC2: _FC2 | _FC2_IN_MLP}
    return next((kind for kind, names in table.items() if leaf in names), None)


def _bert_mlp_kind(name: str, in_attention: bool) -> Kind | None:
    """Match `layer.3.intermediate.dense` and `layer.3.output.dense`, as in BERT and ViT."""
    if in_attention or not name.endswith(".dense"):
        return None
    if name.endswith(".intermediate.dense"):
        return Kind.FC1
    return Kind.FC2 if name.endswith(".output.dense") else None


def _is_attention_output(name: str) -> bool:
    """Match `attention.output.dense`: an outer projection beside its attention."""
    parts = name.split(".")
    return len(parts) >= 3 and parts[-3].lower().startswith("attention") and parts[-2] == "output"


def is_attention(module: nn.Module) -> bool:
    """Return whether a module makes queries and keys itself."""
    names = {name for name, _ in module.named_children()}
    return isinstance(module, nn.MultiheadAttention) or bool(
        names & _FUSED or (names & _QUERY and names & _KEY)
    )


def _layer(name: str) -> int | None:
    """Return the block's index: the first number after a known list of blocks, else the first."""
    parts = name.split(".")
    numbers = [
        (before, int(part))
        for before, part in zip(["", *parts], parts, strict=False)
        if part.isdecimal()
    ]
    blocks = [number for before, number in numbers if before in _BLOCK_LISTS]
    return next(iter(blocks or (number for _, number in numbers)), None)


def _tower(path: str, default: Tower) -> Tower:
    return next((tower for tower, clue in _TOWER_CLUES if clue.search(path)), default)


def _default_tower(model: nn.Module) -> Tower:
    """Return the tower of unnamed parts: vision if a patch embedding is among them."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and "patch" in path:
            named = _tower(path, Tower.LANGUAGE)
            return Tower.VISION if named is Tower.LANGUAGE else Tower.LANGUAGE
    return Tower.LANGUAGE


def _gates(name: str, module: nn.Module, layer: int | None, tower: Tower) -> Iterator[Site]:
    for gate, parameter in module.named_parameters(recurse=False):
        if gate in _GATES:
            yield Site(f"{name}.{gate}", Kind.GATE, layer, tower, module, module, parameter)

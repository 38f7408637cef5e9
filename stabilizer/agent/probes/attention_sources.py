"""A tap on the place where models of transformers look their attention function up.

The models ask `ALL_ATTENTION_FUNCTIONS.get_interface(name, default)` at every forward. While a tap
is open, the function they get is wrapped: it calls the one they would have got, with the same
arguments, and shows queries, keys and mask to the tap afterwards. Neither a configuration nor the
name of an implementation is changed, since models and mask functions compare those names; and the
`eager` function of a model, which stands in no registry, is wrapped like any other.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from stabilizer.agent.probes.attention import Masking, fits

_REGISTRY: Final = "ALL_ATTENTION_FUNCTIONS"
_LOOKUP: Final = "get_interface"
_PARAMETERS: Final = ("module", "query", "key", "value", "attention_mask")
_UNKNOWN_TERMS: Final = ("position_bias", "s_aux", "cu_seq_lens_q", "block_table")
"""Arguments that change the scores in ways that `Masking` does not express."""

_PROJECTED: Final = frozenset({"IdeficsPerceiverAttention"})
"""Attentions that score their projections directly: no rotation, no interface, no mask."""

_taps: list[AttentionTap] = []  # open ones of this process; the registry is one per process


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What an attention was computed from; shapes as in `attention.summarize`."""

    query: Tensor
    key: Tensor
    scale: float | Tensor
    masking: Masking


def uses_interface(module: nn.Module) -> bool:
    """Tell whether a module's class is defined where attention functions are looked up."""
    return any(hasattr(sys.modules.get(cls.__module__), _REGISTRY) for cls in type(module).__mro__)


class AttentionTap:
    """Shows the attention calls of chosen modules while it is open.

    Args:
        shows: For each module what is called after its attention, with the call.
    """

    def __init__(self, shows: Mapping[nn.Module, Callable[[AttentionCall], None]]) -> None:
        self._shows = shows

    def open(self) -> None:
        """Begin to show calls; opening twice changes nothing."""
        if self._shows and self not in _taps:
            _taps.append(self)
            _install()

    def close(self) -> None:
        """Show no more; the last one to close leaves the registry as it was."""
        if self in _taps:
            _taps.remove(self)
            if not _taps:
                _uninstall()

    def notice(self, implementation: str, call: dict[str, Any]) -> None:
        """Show one call if it is of a chosen module and of a known form."""
        module = call.get("module")
        show = self._shows.get(module) if isinstance(module, nn.Module) else None
        if show is not None and _is_known(call):
            show(_described(implementation, call))


def _registry() -> Any:  # noqa: ANN401  passed on as it is  an object of transformers, which need not be installed
    return getattr(sys.modules.get("transformers.modeling_utils"), _REGISTRY, None)


def _install() -> None:
    registry = _registry()
    lookup = getattr(registry, _LOOKUP, None)
    if lookup is None or getattr(lookup, "func", None) is _tapped_lookup:
        return
    setattr(registry, _LOOKUP, functools.partial(_tapped_lookup, lookup))


def _uninstall() -> None:
    registry = _registry()
    mine = getattr(registry, _LOOKUP, None)
    if not isinstance(mine, functools.partial) or mine.func is not _tapped_lookup:
        return
    delattr(registry, _LOOKUP)
    before = mine.args[0]
    if getattr(registry, _LOOKUP) != before:  # somebody else's, from before us
        setattr(registry, _LOOKUP, before)


def _tapped_lookup(
    lookup: Callable[..., Callable[..., Any]],
    *args: Any,  # noqa: ANN401  passed on as it is  whatever the model passes
    **kwargs: Any,  # noqa: ANN401  passed on as it is
) -> Callable[..., Any]:
    name = args[0] if args else kwargs.get("attn_implementation")
    return functools.partial(_attend, lookup(*args, **kwargs), name or "eager")


def _attend(
    function: Callable[..., Any],
    implementation: str,
    *args: Any,  # noqa: ANN401  passed on as it is  whatever the model passes
    **kwargs: Any,  # noqa: ANN401  passed on as it is
) -> Any:  # noqa: ANN401  passed on as it is  and gets
    output = function(*args, **kwargs)
    call = dict(zip(_PARAMETERS, args, strict=False)) | kwargs
    for tap in _taps:
        tap.notice(implementation, call)
    return output


def _is_known(call: dict[str, Any]) -> bool:
    scaling = call.get("scaling")
    return (
        all(call.get(name) is None for name in _UNKNOWN_TERMS)
        and (not isinstance(scaling, Tensor) or scaling.numel() == 1)
        and fits(call.get("query"), call.get("key"), call.get("attention_mask"))
    )


def _described(implementation: str, call: dict[str, Any]) -> AttentionCall:
    query, key, scaling = call["query"], call["key"], call.get("scaling")
    flash = "flash" in implementation
    masking = Masking(
        mask=call.get("attention_mask"),
        causal=_is_causal(implementation, call),
        offset=key.shape[2] - query.shape[2] if flash else 0,
        window=call.get("sliding_window") if flash else None,
        softcap=call.get("softcap"),
    )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return AttentionCall(query, key, scale, masking)


def _is_causal(implementation: str, call: dict[str, Any]) -> bool:
    """As the implementations themselves decide: eager ones know no causality but the mask's."""
    if implementation == "eager":
        return False
    asked = call.get("is_causal")
    if asked is None:
        asked = getattr(call["module"], "is_causal", True)
    if "flash" in implementation:
        return bool(asked)
    return bool(asked) and call.get("attention_mask") is None and call["query"].shape[2] > 1


class ProjectedAttention:
    """Rebuilds the scores of an attention from what its projections, or their norms, put out.

    Args:
        attention: A module for which `scores_its_projections` holds.
        show: Called with each call of the attention.
    """

    def __init__(self, attention: nn.Module, show: Callable[[AttentionCall], None]) -> None:
        settings = vars(attention)
        self._heads = int(settings["n_heads"])
        self._dim = int(settings["head_dim"])
        self._scale = float(settings["qk_scale"])
        self._show = show
        self._query: Tensor | None = None
        children = dict(attention.named_children())
        self.query_source = children.get("q_layer_norm", children["q_proj"])
        self.key_source = children.get("k_layer_norm", children["k_proj"])

    def on_query(self, output: Tensor) -> None:
        """Keep the queries until the keys come."""
        self._query = self._by_head(output)

    def on_key(self, output: Tensor) -> None:
        """Put queries and keys together."""
        query, self._query = self._query, None
        key = self._by_head(output)
        if fits(query, key, None) and query is not None:
            self._show(AttentionCall(query, key, self._scale, Masking()))

    def _by_head(self, output: Tensor) -> Tensor:
        """Shape [B, H, S, D] from that or from [B, S, H * D]."""
        if output.dim() == 4:
            return output
        shape = (*output.shape[:-1], self._heads, self._dim)
        return output.reshape(shape).transpose(1, 2)


def scores_its_projections(module: nn.Module) -> bool:
    """Tell whether `ProjectedAttention` knows this attention; wrong scores are worse than none."""
    return any(cls.__name__ in _PROJECTED for cls in type(module).__mro__)

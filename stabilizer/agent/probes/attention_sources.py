"""Where attention calls are observed: transformers' attention registry, or a module's projections.

Models of transformers ask `ALL_ATTENTION_FUNCTIONS.get_interface(name, default)` for their
attention function at every forward. While a tap is open, that function is wrapped: the original is
called with the same arguments, then queries, keys and mask are passed to the tap. Neither the
configuration nor the implementation's name changes, since models and mask functions compare those
names; a model's `eager` function, which is in no registry, is wrapped the same way.
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
"""Arguments that change the scores in ways that `Masking` cannot express."""

_PROJECTED: Final = frozenset({"IdeficsPerceiverAttention"})
"""Attentions that score their projections directly: no rotation, no registry, no mask."""

_taps: list[AttentionTap] = []  # open taps; the registry is per process


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """Inputs of an attention; shapes as in `attention.summarize`."""

    query: Tensor
    key: Tensor
    scale: float | Tensor
    masking: Masking


def uses_interface(module: nn.Module) -> bool:
    """Return whether a module's class uses the attention registry."""
    return any(hasattr(sys.modules.get(cls.__module__), _REGISTRY) for cls in type(module).__mro__)


class AttentionTap:
    """Reports the attention calls of chosen modules while it is open.

    Args:
        handlers: For each module, the handler called after its attention.
    """

    def __init__(self, handlers: Mapping[nn.Module, Callable[[AttentionCall], None]]) -> None:
        self._handlers = handlers

    def open(self) -> None:
        """Start to report calls; idempotent."""
        if self._handlers and self not in _taps:
            _taps.append(self)
            _install()

    def close(self) -> None:
        """Stop; the last tap to close restores the registry."""
        if self in _taps:
            _taps.remove(self)
            if not _taps:
                _uninstall()

    def report(self, implementation: str, call: dict[str, Any]) -> None:
        """Report a call if its module is chosen and its form supported."""
        module = call.get("module")
        handle = self._handlers.get(module) if isinstance(module, nn.Module) else None
        if handle is not None and _is_known(call):
            handle(_described(implementation, call))


def _registry() -> Any:  # noqa: ANN401  an object of transformers, which may not be installed
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
    if getattr(registry, _LOOKUP) != before:  # replaced by other code before us
        setattr(registry, _LOOKUP, before)


def _tapped_lookup(
    lookup: Callable[..., Callable[..., Any]],
    *args: Any,  # noqa: ANN401  passed through
    **kwargs: Any,  # noqa: ANN401  passed through
) -> Callable[..., Any]:
    name = args[0] if args else kwargs.get("attn_implementation")
    return functools.partial(_attend, lookup(*args, **kwargs), name or "eager")


def _attend(
    function: Callable[..., Any],
    implementation: str,
    *args: Any,  # noqa: ANN401  passed through
    **kwargs: Any,  # noqa: ANN401  passed through
) -> Any:  # noqa: ANN401  passed through
    output = function(*args, **kwargs)
    call = dict(zip(_PARAMETERS, args, strict=False)) | kwargs
    for tap in _taps:
        tap.report(implementation, call)
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
    """Decide as the implementations do: eager ones are causal only by their mask."""
    if implementation == "eager":
        return False
    declared = call.get("is_causal")
    if declared is None:
        declared = getattr(call["module"], "is_causal", True)
    if "flash" in implementation:
        return bool(declared)
    return bool(declared) and call.get("attention_mask") is None and call["query"].shape[2] > 1


class ProjectedAttention:
    """Observes an attention through the outputs of its projections, or of their norms.

    Args:
        attention: A module for which `scores_its_projections` holds.
        handle: Called with each call of the attention.
    """

    def __init__(self, attention: nn.Module, handle: Callable[[AttentionCall], None]) -> None:
        settings = vars(attention)
        self._heads = int(settings["n_heads"])
        self._dim = int(settings["head_dim"])
        self._scale = float(settings["qk_scale"])
        self._handle = handle
        self._query: Tensor | None = None
        children = dict(attention.named_children())
        self.query_source = children.get("q_layer_norm", children["q_proj"])
        self.key_source = children.get("k_layer_norm", children["k_proj"])

    def on_query(self, output: Tensor) -> None:
        """Keep the queries until the keys arrive."""
        self._query = self._by_head(output)

    def on_key(self, output: Tensor) -> None:
        """Combine queries and keys."""
        query, self._query = self._query, None
        key = self._by_head(output)
        if fits(query, key, None) and query is not None:
            self._handle(AttentionCall(query, key, self._scale, Masking()))

    def _by_head(self, output: Tensor) -> Tensor:
        """Return shape [B, H, S, D], from that or from [B, S, H * D]."""
        if output.dim() == 4:
            return output
        shape = (*output.shape[:-1], self._heads, self._dim)
        return output.reshape(shape).transpose(1, 2)


def scores_its_projections(module: nn.Module) -> bool:
    """Return whether `ProjectedAttention` supports this attention; no scores beat wrong ones."""
    return any(cls.__name__ in _PROJECTED for cls in type(module).__mro__)

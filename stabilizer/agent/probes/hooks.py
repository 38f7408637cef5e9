"""Forward hooks that are on the model during a step only, and the forwards that they record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stabilizer.agent.probes.reductions import is_measurable


class RecordingWindow:
    """Open from the first microbatch of a step to its end.

    Not recorded within it: a validation between two microbatches (the model is in another mode than
    when the step began, or in inference mode), and recomputation by gradient checkpointing (a
    forward inside a backward). Modes of submodules do not matter: a frozen backbone may be in eval
    mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._is_open = False
        self._training = False

    @property
    def is_open(self) -> bool:
        """Whether a step is under way."""
        return self._is_open

    def open(self) -> None:
        """Begin a step, in the model's current mode."""
        self._is_open = True
        self._training = self._model.training

    def close(self) -> None:
        """End the step."""
        self._is_open = False

    def admits(self) -> bool:
        """Return whether a forward that runs now belongs to the step and is not a recomputation."""
        return (
            self._is_open
            and self._model.training == self._training
            and not torch.is_inference_mode_enabled()
            and torch._C._current_graph_task_id() == -1  # noqa: SLF001  as in torch's ModTracker
        )


class OutputHandler(Protocol):
    """Receives the output of a module's forward."""

    def __call__(self, output: Tensor) -> None:
        """Measure the output; must not change it."""
        ...


@dataclass(frozen=True, slots=True)
class _Watch:
    module: nn.Module
    handle: OutputHandler
    fast_path: nn.Module | None


class ForwardHooks:
    """Passes the outputs of chosen modules to handlers while a step is recorded.

    Hooks are registered for a step and removed after it: between steps the model is unchanged, as
    are validation, copies and pickles of it.

    Args:
        model: The model.
        admits: Whether to record the forward that runs now.
    """

    def __init__(self, model: nn.Module, admits: Callable[[], bool]) -> None:
        self._fast_paths = {
            inner: layer
            for layer in model.modules()
            if isinstance(layer, nn.TransformerEncoderLayer)
            for inner in layer.modules()
        }
        self._compiled = compiled_modules(model)
        self._admits = admits
        self._watches: list[_Watch] = []
        self._handles: list[RemovableHandle] = []

    def watch(self, module: nn.Module, handle: OutputHandler) -> None:
        """Pass the outputs of this module to a handler, from the next `put_on` on.

        Skips compiled modules: their hooks would not run, or trigger a recompilation.
        """
        if module in self._compiled:
            return
        self._watches.append(_Watch(module, handle, self._fast_paths.get(module)))

    def put_on(self) -> None:
        """Register the hooks; idempotent.

        Skips a `TransformerEncoderLayer` in eval mode: a hook would turn its fused path off and
        thereby change the last bits of its output.
        """
        if self._handles:
            return
        for watch in self._watches:
            if watch.fast_path is None or watch.fast_path.training:
                hook = _Hook(self._admits, watch.handle)
                self._handles.append(watch.module.register_forward_hook(hook))

    def take_off(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _Hook:
    def __init__(self, admits: Callable[[], bool], handle: OutputHandler) -> None:
        self._admits = admits
        self._handle = handle

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        if not self._admits():
            return
        tensor = output[0] if isinstance(output, (tuple, list)) and output else output
        if is_measurable(tensor):
            self._handle(tensor.detach())


def compiled_modules(model: nn.Module) -> set[nn.Module]:
    """Return modules within compiled or scripted ones, where a later hook would not run."""
    return {
        inner
        for module in model.modules()
        if isinstance(module, torch.jit.ScriptModule)
        or hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        for inner in module.modules()
    }

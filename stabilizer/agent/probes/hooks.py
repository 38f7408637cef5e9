"""Forward hooks that are on the model during a step only, and which forwards they record."""

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

    Not recorded, though within: a validation between two microbatches (the model is in another mode
    than when the step began, or in inference mode), and what gradient checkpointing computes a
    second time (a forward inside a backward). Modes of submodules say nothing: a frozen backbone
    may well be in eval mode.
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
        """A step begins, in the mode that the model has now."""
        self._is_open = True
        self._training = self._model.training

    def close(self) -> None:
        """The step is over."""
        self._is_open = False

    def admits(self) -> bool:
        """Tell whether a forward that runs now is one of the step, for the first time."""
        return (
            self._is_open
            and self._model.training == self._training
            and not torch.is_inference_mode_enabled()
            and torch._C._current_graph_task_id() == -1  # noqa: SLF001  what torch's ModTracker asks
        )


class OutputHandler(Protocol):
    """Gets the output of a module's forward."""

    def __call__(self, output: Tensor) -> None:
        """Look at the output; it must not be changed."""
        ...


@dataclass(frozen=True, slots=True)
class _Watch:
    module: nn.Module
    handle: OutputHandler
    fast_path: nn.Module | None


class ForwardHooks:
    """Outputs of chosen modules, handed on while a step is recorded.

    Hooks are put on for a step and taken off after it: between steps the model is untouched, and
    validation, copies and pickles of it see nothing of us.

    Args:
        model: The model.
        admits: Whether the forward that runs now is to be recorded.
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
        """Hand the outputs of this module on, from the next `put_on` onwards.

        A compiled module is left alone: its hooks would be skipped, or compile it anew.
        """
        if module in self._compiled:
            return
        self._watches.append(_Watch(module, handle, self._fast_paths.get(module)))

    def put_on(self) -> None:
        """Register the hooks; those on already stay.

        A `TransformerEncoderLayer` in eval mode is left alone: a hook would turn its fused path
        off, and with it change the last bits of its output.
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
    """Modules within compiled or scripted ones, where a hook put on later would not run."""
    return {
        inner
        for module in model.modules()
        if isinstance(module, torch.jit.ScriptModule)
        or hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        for inner in module.modules()
    }

"""Finding what a fault is aimed at by its name in the model."""

from __future__ import annotations

from torch import nn

from stabilizer.errors import ConfigurationError

_SHOWN = 6


def find_module(root: nn.Module, name: str, field: str) -> nn.Module:
    """Return the module with this dotted name, or the only one whose name ends with it.

    Args:
        root: The job's module.
        name: `model.lm_head` as well as `lm_head`.
        field: Of the configuration, for the message.

    Raises:
        ConfigurationError: There is none, or more than one; the message shows some that there are.
    """
    found = [path for path, _ in root.named_modules() if path == name or path.endswith(f".{name}")]
    if name in found:
        return root.get_submodule(name)
    if len(found) == 1:
        return root.get_submodule(found[0])
    known = found or [path for path, child in root.named_modules() if path and _has_weights(child)]
    shown = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
    raise ConfigurationError(
        f"{field}: {name!r} cannot be used; allowed: the name of one module, such as {shown}"
    )


def find_parameters(root: nn.Module, name: str, field: str) -> list[nn.Parameter]:
    """Return the parameters of the module with this name; everything for the empty name.

    Raises:
        ConfigurationError: There is no such module, or it has no parameters.
    """
    module = root if not name else find_module(root, name, field)
    parameters = list(module.parameters())
    if not parameters:
        raise ConfigurationError(
            f"{field}: {name!r} cannot be used; allowed: a module that has weights"
        )
    return parameters


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None

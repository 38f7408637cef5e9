"""Weights on disk or on the hub: safetensors only, since a pickle runs what is written in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from stabilizer.errors import ConfigurationError

_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"
_HUB_FILES: Final = ["config.json", "model*.safetensors", _INDEX]
"""Not every file: some repositories hold the same weights in several layouts."""
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def find_folder(source: str, field: str) -> Path:
    """Return the local folder of a source; what is on the hub comes through its cache.

    Args:
        source: A folder, or `owner/name` with or without `@revision`.
        field: Name of the configuration's field, for errors.

    Raises:
        ConfigurationError: There is no such folder, and the hub gives none.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_NAME.fullmatch(source):
        raise ConfigurationError(
            f"{field}: {source!r} cannot be used; allowed: a folder that exists, or owner/name of "
            "the hub with or without @revision"
        )
    name, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES))
    except LocalEntryNotFoundError as error:
        raise ConfigurationError(
            f"{field}: {source!r} is no folder here, not in the hub's cache, and the hub cannot be "
            "asked; allowed: a folder that exists, a cached name, or a hub within reach "
            "(HF_HUB_OFFLINE=0 lets it be asked)"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigurationError(
            f"{field}: {source!r} is no folder here, and the hub does not give it: {error}"
        ) from error


class WeightFiles:
    """Tensors of a folder by name; each is read when it is asked for, and held by nobody here."""

    def __init__(self, folder: Path, field: str) -> None:
        """Open the files.

        Args:
            folder: With an index of several files, `model.safetensors`, or any files of that kind.
            field: Name of the configuration's field, for errors.

        Raises:
            ConfigurationError: There is no safetensors file, or one cannot be read.
        """
        self._field = field
        self._stack = ExitStack()
        self._places: dict[str, Any] = {}
        for path in self._paths(folder):
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            except (SafetensorError, OSError) as error:
                raise ConfigurationError(f"{field}: {path} cannot be read: {error}") from error
            self._places.update(dict.fromkeys(file.keys(), file))

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return tuple(self._places[name].get_slice(name).get_shape())

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        tensor: torch.Tensor = self._places[name].get_tensor(name)
        return tensor

    def close(self) -> None:
        """Let go of the files."""
        self._stack.close()

    def _paths(self, folder: Path) -> list[Path]:
        index = folder / _INDEX
        if index.is_file():
            return self._indexed(folder, index)
        paths = sorted(folder.glob("*.safetensors"))
        if folder / _SINGLE in paths:
            return [folder / _SINGLE]
        if paths:
            return paths
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        found = f"only pickled ones ({', '.join(pickles[:3])})" if pickles else "none"
        raise ConfigurationError(
            f"{self._field}: {folder} holds no weights as safetensors, {found}; allowed: files "
            "*.safetensors (a pickle can run any code when read: convert it where you trust it)"
        )

    def _indexed(self, folder: Path, index: Path) -> list[Path]:
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"{self._field}: {index} is no index: {error!r}") from error
        missing = [name for name in names if not (folder / Path(name).name).is_file()]
        if missing:
            raise ConfigurationError(
                f"{self._field}: {folder} lacks the files {', '.join(missing)} that its index names"
            )
        return [folder / Path(name).name for name in names]

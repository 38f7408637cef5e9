"""Weights from published models: their files, their names, and which were loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoConfig, IdeficsConfig

from stabilizer.errors import ConfigurationError
from trainer.config import PARTS, ModelConfig, Part
from trainer.module.parts import part_of

_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"
_HUB_FILES: Final = ["config.json", "model*.safetensors", _INDEX]
"""Not every file: some repositories hold the same weights in several layouts."""
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def find_folder(source: str, field: str) -> Path:
    """Return the local folder of a source; files of the hub come from its cache.

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
    """Tensors of a folder by name; each is read on demand and not kept."""

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
        """Close the files."""
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


_MOST_SHOWN: Final = 20
"""Most differences of one source that are reported; a wrong width makes hundreds."""
_EMBEDDING: Final = "model.embed_tokens.weight"
_HEAD: Final = "lm_head.weight"
_VISION: Final = "vision_config"
_BUFFERS: Final = re.compile(r"(\A|\.)(inv_freq|original_inv_freq|position_ids)\Z")
"""Computed, not learned; old checkpoints hold them."""
_ADDED: Final = re.compile(r"\.(o_norm|fc2_norm)\.")
"""Norms that only our variant of IDEFICS has."""

Fields = Mapping[str, object]


@dataclass(frozen=True)
class _Kind:
    """A kind of source: the parts that it holds, and its names for them."""

    parts: frozenset[Part]
    rename: Callable[[Iterable[str]], dict[str, str]]
    """Names in the files to names in our model; unused ones are left out."""
    expected: Callable[[ModelConfig], Fields]
    """Required values in its `config.json`, by dotted name."""


@dataclass(frozen=True)
class _Source:
    files: WeightFiles
    places: Mapping[str, str]
    """Name in our model to name in the files."""


class PretrainedWeights:
    """Checked sources, ready to be read into a model."""

    def __init__(self, sources: Iterable[_Source]) -> None:
        self._sources = list(sources)

    @property
    def names(self) -> frozenset[str]:
        """The weights of the model that are loaded."""
        return frozenset(name for source in self._sources for name in source.places)

    @torch.no_grad()
    def fill(self, model: nn.Module) -> None:
        """Read all tensors into a materialized model, one by one, then close the files."""
        parameters = dict(model.named_parameters())
        for source in self._sources:
            for name, place in source.places.items():
                _write(parameters[name], source.files.read(place))
        self.close()

    def close(self) -> None:
        """Close the files."""
        for source in self._sources:
            source.files.close()


def open_pretrained(config: ModelConfig, model: nn.Module) -> PretrainedWeights:
    """Find the sources, and check them against the model.

    Where the sources have another format than the model, the loaded parameters are changed to it.

    Args:
        config: With `pretrained`.
        model: The skeleton; its parameters are still on the meta device.

    Raises:
        ConfigurationError: With every difference of every source, a line each.
    """
    sources: list[_Source] = []
    mistakes: list[str] = []
    for name, kind in _KINDS.items():
        given = getattr(config.pretrained, name)
        if given is None:
            continue
        try:
            sources.append(_open(given, f"model.pretrained.{name}", kind, config, model))
        except ConfigurationError as error:
            mistakes.append(str(error))
    weights = PretrainedWeights(sources)
    if mistakes:
        weights.close()
        raise ConfigurationError("\n".join(mistakes))
    if config.pretrained.dtype is not None:
        dtype = getattr(torch, config.pretrained.dtype)
        for name, parameter in model.named_parameters():
            # Embeddings stay with those of the new tokens, which are written among them.
            if name in weights.names and part_of(name) != "embeddings":
                parameter.data = parameter.data.to(dtype)
    return weights


def _open(given: str, field: str, kind: _Kind, config: ModelConfig, model: nn.Module) -> _Source:
    folder = find_folder(given, field)
    files = WeightFiles(folder, field)
    places = {ours: theirs for theirs, ours in kind.rename(files).items()}
    mistakes = []
    try:
        theirs = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        mistakes.append(f"config.json cannot be read: {error}")
    else:
        mistakes += _config_mistakes(theirs, kind.expected(config))
        if getattr(theirs, "tie_word_embeddings", False) and _EMBEDDING in places:
            places.setdefault(_HEAD, places[_EMBEDDING])  # tied in the file, apart in IDEFICS
    wanted = {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if part_of(name) in kind.parts and not _ADDED.search(name)
    }
    mistakes += _tensor_mistakes(files, places, wanted)
    if mistakes:
        files.close()
        shown = mistakes[:_MOST_SHOWN]
        if len(mistakes) > len(shown):
            shown.append(f"and {len(mistakes) - len(shown)} more")
        raise ConfigurationError("\n".join(f"{field}: {folder}: {line}" for line in shown))
    return _Source(files, places)


def _config_mistakes(theirs: object, expected: Fields) -> list[str]:
    found = {name: _look_up(theirs, name) for name in expected}
    return [
        f"config.json: {name} is {found[name]!r}, and {value!r} is configured"
        for name, value in expected.items()
        if found[name] != value
    ]


def _look_up(configuration: object, name: str) -> object:
    """Return a value by its dotted name; None where there is none."""
    value: object = configuration
    for part in name.split("."):
        if part == _VISION and not hasattr(value, _VISION):
            continue  # the configuration of the encoder alone
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    return value


def _tensor_mistakes(
    files: WeightFiles, places: Mapping[str, str], wanted: Mapping[str, tuple[int, ...]]
) -> list[str]:
    mistakes = []
    for name, shape in wanted.items():
        if name not in places:
            mistakes.append(f"{name}: missing, expected with shape {list(shape)}")
        elif files.shape(places[name]) != shape:
            found = list(files.shape(places[name]))
            mistakes.append(f"{places[name]}: shape {found} found, expected {list(shape)}")
    for name, place in places.items():
        if name not in wanted:
            mistakes.append(
                f"{place}: found with shape {list(files.shape(place))}, the model has none"
            )
    return mistakes


def _write(parameter: nn.Parameter, tensor: torch.Tensor) -> None:
    if isinstance(parameter, DTensor):
        local = tensor.to(parameter.device, parameter.dtype)
        tensor = distribute_tensor(local, parameter.device_mesh, parameter.placements)
    parameter.copy_(tensor)
    # transformers uses this to initialize the rest at random.
    parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # noqa: SLF001  its own flag


def _language_names(names: Iterable[str]) -> dict[str, str]:
    renamed = {}
    for name in names:
        if not _BUFFERS.search(name):
            is_bare = not name.startswith(("model.", "lm_head."))
            renamed[name] = f"model.{name}" if is_bare else name
    return renamed


def _vision_names(names: Iterable[str]) -> dict[str, str]:
    """A whole CLIP has a text tower and projections beside the encoder; they are left out."""
    names = [name for name in names if not _BUFFERS.search(name)]
    prefix = "vision_model."
    if any(name.startswith(prefix) for name in names):
        return {name: f"model.{name}" for name in names if name.startswith(prefix)}
    return {name: f"model.{prefix}{name}" for name in names}


def _whole_names(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names if not _BUFFERS.search(name)}


def _language_fields(config: ModelConfig) -> Fields:
    return {**_decoder_fields(config), "num_key_value_heads": config.heads}


def _decoder_fields(config: ModelConfig) -> Fields:
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "vocab_size": config.vocabulary_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters.rope_theta": config.rope_theta,
        "rope_parameters.rope_type": "default",
    }


def _vision_fields(config: ModelConfig) -> Fields:
    vision = config.vision
    fields = {
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": vision.activation,
        "layer_norm_eps": 1e-5,  # IDEFICS has no other
    }
    return {f"{_VISION}.{name}": value for name, value in fields.items()}


def _whole_fields(config: ModelConfig) -> Fields:
    return {
        "model_type": IdeficsConfig.model_type,
        **_decoder_fields(config),
        **_vision_fields(config),
        "additional_vocab_size": config.additional_tokens,
        "cross_layer_interval": config.cross_attention_every,
        "alpha_type": config.gate_type,
        "use_resampler": True,
        "perceiver_config.resampler_n_heads": config.resampler.heads,
        "perceiver_config.resampler_head_dim": config.resampler.head_size,
    }


_LANGUAGE: Final[frozenset[Part]] = frozenset(
    {"language_layers", "language_norms", "embeddings", "head"}
)
_KINDS: Final[dict[str, _Kind]] = {
    "language": _Kind(_LANGUAGE, _language_names, _language_fields),
    "vision": _Kind(frozenset({"vision", "vision_norms"}), _vision_names, _vision_fields),
    "whole": _Kind(
        frozenset(part for part in PARTS if part != "added_norms"),
        _whole_names,
        _whole_fields,
    ),
}

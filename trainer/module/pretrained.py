"""Start from a pretrained language model, a vision encoder, or a whole IDEFICS.

Names and shapes are compared before anything is read, and what a shape does not show (heads, the
rotary base, activations) with the `config.json` beside the weights. All differences of all sources
are told at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoConfig, IdeficsConfig

from stabilizer.errors import ConfigurationError
from trainer.config import PARTS, ModelConfig, Part
from trainer.module.parts import part_of
from trainer.module.weight_files import WeightFiles, find_folder

_MOST_TOLD: Final = 20
"""Differences of one source that are told; a wrong width makes hundreds."""
_EMBEDDING: Final = "model.embed_tokens.weight"
_HEAD: Final = "lm_head.weight"
_VISION: Final = "vision_config"
_BUFFERS: Final = re.compile(r"(\A|\.)(inv_freq|original_inv_freq|position_ids)\Z")
"""Computed, not learned; old checkpoints hold them."""
_ADDED: Final = re.compile(r"\.(o_norm|fc2_norm)\.")
"""Norms that no IDEFICS but ours has."""

Fields = Mapping[str, object]


@dataclass(frozen=True)
class _Kind:
    """What a source is: the parts that come from it, and how it names them."""

    parts: frozenset[Part]
    rename: Callable[[Iterable[str]], dict[str, str]]
    """Names in the files to names in our model; what is left out is of no use to us."""
    expected: Callable[[ModelConfig], Fields]
    """What its `config.json` must say, by dotted name."""


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
        """Read everything into a model with memory, tensor by tensor; files are closed after it."""
        parameters = dict(model.named_parameters())
        for source in self._sources:
            for name, place in source.places.items():
                _write(parameters[name], source.files.read(place))
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        for source in self._sources:
            source.files.close()


def open_pretrained(config: ModelConfig, model: nn.Module) -> PretrainedWeights:
    """Find the sources, and compare them with the model that they are for.

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
        told = mistakes[:_MOST_TOLD]
        if len(mistakes) > len(told):
            told.append(f"and {len(mistakes) - len(told)} more")
        raise ConfigurationError("\n".join(f"{field}: {folder}: {line}" for line in told))
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
    # What transformers goes by when it draws the rest at random.
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
        "layer_norm_eps": 1e-5,  # IDEFICS knows no other
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

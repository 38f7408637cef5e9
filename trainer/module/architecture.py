"""The IDEFICS model of transformers, built from our configuration.

Large models are built on the meta device and allocated once, in their final number formats: loaded
weights are not initialized first, and no weight is held twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import IdeficsConfig, IdeficsForVisionText2Text

from trainer.config import ModelConfig
from trainer.module.norms import put_norms, reset_added_norms
from trainer.module.parts import freeze
from trainer.module.pretrained import PretrainedWeights, open_pretrained


def build_model(config: ModelConfig, *, pad_token_id: int = 0) -> IdeficsForVisionText2Text:
    """Build the model on the host, frozen and pretrained where configured.

    Random weights come from torch's global random state.

    Args:
        config: Sizes and options.
        pad_token_id: Id whose embedding is never trained.

    Raises:
        ConfigurationError: Pretrained weights are missing or do not fit; lists all errors.
    """
    if not config.pretrained.is_given:
        return _assemble(config, pad_token_id)
    model = build_skeleton(config, pad_token_id=pad_token_id)
    materialise(model, open_pretrained(config, model), device=torch.device("cpu"))
    return model


def build_skeleton(config: ModelConfig, *, pad_token_id: int = 0) -> IdeficsForVisionText2Text:
    """Build the model on the meta device: shapes, formats and what is frozen, without memory.

    To shard it: `open_pretrained` before, since it sets the formats of what is loaded, and
    `materialise` afterwards.
    """
    with torch.device("meta"):
        return _assemble(config, pad_token_id)


@torch.no_grad()
def materialise(
    model: IdeficsForVisionText2Text,
    weights: PretrainedWeights | None = None,
    *,
    device: torch.device,
) -> None:
    """Allocate a skeleton and set its weights, in place; sharded parameters stay sharded.

    Args:
        model: As `build_skeleton` made it, sharded since or not.
        weights: Pretrained weights; all others are drawn from torch's random state.
        device: Device of the weights.
    """
    model.to_empty(device=device)
    reset_added_norms(model)
    if weights is not None:
        weights.fill(model)
    model.initialize_weights()  # leaves alone what is flagged as loaded


def to_transformers(config: ModelConfig, *, pad_token_id: int) -> IdeficsConfig:
    """Translate our names into those of transformers."""
    vision, resampler = config.vision, config.resampler
    return IdeficsConfig(
        vocab_size=config.vocabulary_size,
        additional_vocab_size=config.additional_tokens,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        cross_layer_interval=config.cross_attention_every,
        max_position_embeddings=config.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        rms_norm_eps=config.norm_eps,
        dropout=config.dropout,
        qk_layer_norms=config.qk_norm == "rms",
        alpha_initializer=config.gate_initializer,
        alpha_type=config.gate_type,
        alphas_initializer_range=config.gate_deviation,
        initializer_range=config.initializer_range,
        freeze_text_layers=False,  # we freeze by part, afterwards
        freeze_vision_layers=False,
        freeze_lm_head=False,
        pad_token_id=pad_token_id,
        use_cache=False,
        use_resampler=True,
        attn_implementation=config.attention,
        vision_config={
            "embed_dim": vision.hidden_size,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "attention_dropout": vision.attention_dropout,
            "hidden_act": vision.activation,
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": resampler.latents,
            "resampler_depth": resampler.layers,
            "resampler_n_heads": resampler.heads,
            "resampler_head_dim": resampler.head_size,
            "qk_layer_norms_perceiver": resampler.qk_norm == "layer_norm",
        },
    )


def _assemble(config: ModelConfig, pad_token_id: int) -> IdeficsForVisionText2Text:
    if config.layers_at_equal_size is not None:
        raise ValueError("model.layers_at_equal_size: choose the widths first, by at_equal_size")
    with _default_dtype(getattr(torch, config.dtype)):
        model = IdeficsForVisionText2Text(to_transformers(config, pad_token_id=pad_token_id))
        put_norms(model, config)
    freeze(model, config.freeze)
    if config.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        # For adapters behind reentrant checkpoints; here it would send gradients through frozen
        # embeddings for nothing.
        model.disable_input_require_grads()
    return model


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)

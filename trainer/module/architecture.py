"""The IDEFICS model of transformers, built from our configuration with random weights."""

from __future__ import annotations

from transformers import IdeficsConfig, IdeficsForVisionText2Text

from trainer.config import ModelConfig


def build_model(config: ModelConfig, *, pad_token_id: int = 0) -> IdeficsForVisionText2Text:
    """Build the model, frozen where configured; weights come from torch's global random state.

    Args:
        config: Sizes and knobs.
        pad_token_id: Id whose embedding is never trained.
    """
    return IdeficsForVisionText2Text(to_transformers(config, pad_token_id=pad_token_id))


def to_transformers(config: ModelConfig, *, pad_token_id: int) -> IdeficsConfig:
    """Translate our names into those of transformers."""
    vision, resampler = config.vision, config.resampler
    return IdeficsConfig(
        vocab_size=config.vocabulary_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        cross_layer_interval=config.cross_attention_every,
        max_position_embeddings=config.max_positions,
        dropout=config.dropout,
        qk_layer_norms=config.qk_norm,
        alpha_initializer=config.gate_initializer,
        alpha_type=config.gate_type,
        alphas_initializer_range=config.gate_deviation,
        initializer_range=config.initializer_range,
        freeze_text_layers=config.freeze_language,
        freeze_vision_layers=config.freeze_vision,
        freeze_lm_head=config.freeze_head,
        pad_token_id=pad_token_id,
        use_cache=False,
        use_resampler=True,
        attn_implementation="sdpa",
        vision_config={
            "embed_dim": vision.hidden_size,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "attention_dropout": vision.attention_dropout,
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": resampler.latents,
            "resampler_depth": resampler.layers,
            "resampler_n_heads": resampler.heads,
            "resampler_head_dim": resampler.head_size,
            "qk_layer_norms_perceiver": resampler.qk_norm,
        },
    )

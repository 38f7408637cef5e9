"""An IDEFICS that trains in milliseconds."""

SMALL_MODEL = {
    "model.hidden_size": 32,
    "model.intermediate_size": 48,
    "model.layers": 2,
    "model.heads": 2,
    "model.cross_attention_every": 1,
    "model.vision.hidden_size": 16,
    "model.vision.intermediate_size": 32,
    "model.vision.layers": 1,
    "model.vision.heads": 2,
    "model.resampler.latents": 2,
    "model.resampler.layers": 1,
    "model.resampler.heads": 2,
    "model.resampler.head_size": 8,
    "data.batch_size": 4,
    "optimizer.warmup_steps": 2,
}
"""Fields of its configuration."""

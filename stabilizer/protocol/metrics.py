"""Names of the metrics that the agent measures, and of towers, kinds and labels."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Metric(StrEnum):
    """Metric names. A job may log any other snake_case name as well."""

    LOSS = "loss"
    """Cross-entropy in nats, float32; label `source` for one data source."""
    LOSS_TOTAL = "loss_total"
    """The backpropagated loss, auxiliary terms included."""
    Z_LOSS = "z_loss"
    """mean(logsumexp(logits)^2), before its weight."""
    LR = "lr"
    """Effective learning rate of a parameter group; label `group`."""
    LR_SCALE = "lr_scale"
    """Multiplier on the scheduler; 1 if nothing is overridden."""
    GRAD_NORM = "grad_norm"
    """L2 before clipping; global without labels, per module with `module`."""
    ACTIVATION_RMS = "activation_rms"
    """sqrt(mean(x^2)) of a module's output."""
    ATTENTION_ENTROPY = "attention_entropy"
    """Mean over queries of H(p) / log(visible keys), in [0, 1]; label `head`: min or mean."""
    ATTENTION_LOGIT_MAX = "attention_logit_max"
    """Largest scaled logit."""
    GATE = "gate"
    """tanh(alpha) of a gated cross-attention block."""
    NONFINITE = "nonfinite"
    """Number of NaN and Inf values."""
    STEP_SECONDS = "step_seconds"
    """Wall time of an optimizer step, in seconds."""
    LOSS_SCALE = "loss_scale"
    """Factor of a loss scaler, after the step; absent without one."""
    STEP_SKIPPED = "step_skipped"
    """1 if a loss scaler or the guard left the step out, else 0; absent where neither is used."""


class Tower(StrEnum):
    """The part of the model a module belongs to, bottom to top."""

    VISION = "vision"
    RESAMPLER = "resampler"
    LANGUAGE = "language"
    CROSS_ATTENTION = "cross_attention"


class Kind(StrEnum):
    """The role of a module, the same for every architecture."""

    Q_PROJ = "q_proj"
    K_PROJ = "k_proj"
    V_PROJ = "v_proj"
    O_PROJ = "o_proj"
    FC1 = "fc1"
    FC2 = "fc2"
    """The outer projection of an MLP; `down_proj` in Llama, `c_proj` in the Perceiver."""
    ATTENTION = "attention"
    GATE = "gate"
    HEAD = "head"


LABEL_NAMES: Final = frozenset(
    {"module", "layer", "tower", "kind", "head", "source", "rank", "group"}
)
"""Labels with a fixed meaning; a job may use others for its own metrics."""

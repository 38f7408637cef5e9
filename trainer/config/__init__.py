"""What is trained and how: typed, checked, documented field by field, and shown as YAML."""

from trainer.config.data import DataConfig
from trainer.config.describing import FieldDescription, describe_fields
from trainer.config.faults import BadDocumentsConfig, FaultsConfig, LrRestartConfig
from trainer.config.library import (
    describe_presets,
    describe_recipes,
    find_policy,
    preset_names,
    recipe_names,
)
from trainer.config.loading import config_to_yaml, load_config
from trainer.config.model import ModelConfig
from trainer.config.monitor import SOLO, MonitorConfig
from trainer.config.optimizer import DECAY_KINDS, DecayKind, OptimizerConfig
from trainer.config.run import RunConfig, TrainingConfig
from trainer.config.towers import QkNorm, ResamplerConfig, VisionConfig
from trainer.config.weights import PARTS, Part, PretrainedConfig, UnfreezeConfig

__all__ = [
    "DECAY_KINDS",
    "PARTS",
    "SOLO",
    "BadDocumentsConfig",
    "DataConfig",
    "DecayKind",
    "FaultsConfig",
    "FieldDescription",
    "LrRestartConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "Part",
    "PretrainedConfig",
    "QkNorm",
    "ResamplerConfig",
    "RunConfig",
    "TrainingConfig",
    "UnfreezeConfig",
    "VisionConfig",
    "config_to_yaml",
    "describe_fields",
    "describe_presets",
    "describe_recipes",
    "find_policy",
    "load_config",
    "preset_names",
    "recipe_names",
]

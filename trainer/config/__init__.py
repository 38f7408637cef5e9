"""Configuration of a run: typed, checked, documented by field, and shown as YAML."""

from trainer.config.data import DataConfig, FiltersConfig, PackingConfig, SourceConfig
from trainer.config.describing import FieldDescription, describe_fields
from trainer.config.library import (
    describe_presets,
    describe_recipes,
    find_policy,
    preset_names,
    recipe_names,
)
from trainer.config.loading import config_to_yaml, load_config
from trainer.config.model import (
    PARTS,
    ModelConfig,
    Part,
    PretrainedConfig,
    QkNorm,
    ResamplerConfig,
    UnfreezeConfig,
    VisionConfig,
)
from trainer.config.run import (
    DECAY_KINDS,
    SOLO,
    DecayKind,
    MonitorConfig,
    OptimizerConfig,
    RunConfig,
    TrainingConfig,
)

__all__ = [
    "DECAY_KINDS",
    "PARTS",
    "SOLO",
    "DataConfig",
    "DecayKind",
    "FieldDescription",
    "FiltersConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "PackingConfig",
    "Part",
    "PretrainedConfig",
    "QkNorm",
    "ResamplerConfig",
    "RunConfig",
    "SourceConfig",
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

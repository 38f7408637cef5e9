"""What is trained and how: typed, checked, documented field by field, and shown as YAML."""

from trainer.config.data import DataConfig
from trainer.config.faults import BadDocumentsConfig, FaultsConfig, LrRestartConfig
from trainer.config.loading import config_to_yaml, load_config, preset_names
from trainer.config.model import ModelConfig, ResamplerConfig, VisionConfig
from trainer.config.monitor import SOLO, MonitorConfig
from trainer.config.optimizer import OptimizerConfig
from trainer.config.run import RunConfig, TrainingConfig

__all__ = [
    "SOLO",
    "BadDocumentsConfig",
    "DataConfig",
    "FaultsConfig",
    "LrRestartConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "ResamplerConfig",
    "RunConfig",
    "TrainingConfig",
    "VisionConfig",
    "config_to_yaml",
    "load_config",
    "preset_names",
]

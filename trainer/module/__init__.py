"""The model, what it minimises, and how it is stepped."""

from trainer.module.architecture import build_model, build_skeleton, materialise
from trainer.module.idefics_module import IdeficsModule, MetricLog
from trainer.module.pretrained import PretrainedWeights, open_pretrained
from trainer.module.progress import ProgressLine
from trainer.module.records import LossRecorder, as_json

__all__ = [
    "IdeficsModule",
    "LossRecorder",
    "MetricLog",
    "PretrainedWeights",
    "ProgressLine",
    "as_json",
    "build_model",
    "build_skeleton",
    "materialise",
    "open_pretrained",
]

"""The model, its losses, and its optimizer."""

from trainer.module.architecture import build_model, build_skeleton, materialise
from trainer.module.idefics_module import IdeficsModule, MetricLog
from trainer.module.optimization import follow_configuration
from trainer.module.parts import UnfreezeSchedule
from trainer.module.pretrained import PretrainedWeights, open_pretrained
from trainer.module.progress import LossRecorder, ProgressLine, as_json
from trainer.module.sizes import Sizes, at_equal_size, count_weights

__all__ = [
    "IdeficsModule",
    "LossRecorder",
    "MetricLog",
    "PretrainedWeights",
    "ProgressLine",
    "Sizes",
    "UnfreezeSchedule",
    "as_json",
    "at_equal_size",
    "build_model",
    "build_skeleton",
    "count_weights",
    "follow_configuration",
    "materialise",
    "open_pretrained",
]

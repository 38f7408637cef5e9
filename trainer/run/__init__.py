"""A run: built from its configuration, trained, monitored, saved and resumed."""

from trainer.run.fitting import fit, silence_libraries
from trainer.run.job import TrainingJob, build_job
from trainer.run.summary import Summary, export_model, heldout_loss

__all__ = [
    "Summary",
    "TrainingJob",
    "build_job",
    "export_model",
    "fit",
    "heldout_loss",
    "silence_libraries",
]

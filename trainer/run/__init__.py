"""A run: built from its configuration, trained, watched, saved, resumed, and written down."""

from trainer.run.exporting import export_model
from trainer.run.fitting import fit
from trainer.run.job import TrainingJob, build_job
from trainer.run.summary import Summary, heldout_loss

__all__ = ["Summary", "TrainingJob", "build_job", "export_model", "fit", "heldout_loss"]

"""Failures on demand: seeded, once, by step or by sample; for this job and any Lightning job."""

from trainer.faults.bad_documents import BadDocuments
from trainer.faults.lr_restart import LrRestart

__all__ = ["BadDocuments", "LrRestart"]

"""Failures on demand: seeded, once, by step or by sample; for this job and any Lightning job.

Accidents of the process are plain callbacks, for instance
`Trainer(callbacks=[NanGradient(step=100, module="lm_head"), watcher])`. They happen once and are
state of the job, so that a rollback undoes them. Bad data is a function of the position in the
stream, for a job's own dataset; a rollback meets it again.
"""

from trainer.faults.data import (
    BadDocuments,
    RepeatedDocuments,
    corrupt_file,
    show_corrupted_corpus,
)
from trainer.faults.flipped_weights import FlippedWeights
from trainer.faults.fp16_overflow import Fp16Overflow
from trainer.faults.fresh_weights import FreshWeights
from trainer.faults.logit_drift import LogitDrift
from trainer.faults.lost_moments import LostMoments
from trainer.faults.lr_restart import LrRestart
from trainer.faults.lr_too_high import LrTooHigh
from trainer.faults.nan_gradient import NanGradient
from trainer.faults.scaled_weights import ScaledWeights
from trainer.faults.slow_rank import SlowRank
from trainer.faults.stale_moments import StaleMoments

__all__ = [
    "BadDocuments",
    "FlippedWeights",
    "Fp16Overflow",
    "FreshWeights",
    "LogitDrift",
    "LostMoments",
    "LrRestart",
    "LrTooHigh",
    "NanGradient",
    "RepeatedDocuments",
    "ScaledWeights",
    "SlowRank",
    "StaleMoments",
    "corrupt_file",
    "show_corrupted_corpus",
]

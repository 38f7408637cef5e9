"""Failure injection: seeded, once, by step or by sample; for this job and any Lightning job.

A fault is one class: its fields are its section of the configuration, and it is registered once, in
`FAULTS`. Accidents of the process are plain callbacks, for instance
`Trainer(callbacks=[NanGradient(step=100, module="lm_head"), watcher])`. They happen once and change
state of the job, so that a rollback undoes them. Bad data is a function of the position in the
stream, for a job's own dataset; a rollback meets it again unless it skips it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from pydantic import BaseModel, Field, create_model

from trainer.faults.base import SETTINGS, FaultCallback, PassingFault, StepFault
from trainer.faults.corrupted_shard import CorruptedShard, corrupt_file, show_corrupted_corpus
from trainer.faults.documents import BadDocuments, RepeatedDocuments, StreamFault
from trainer.faults.moments import LostMoments, StaleMoments
from trainer.faults.numbers import Fp16Overflow, LogitDrift, NanGradient
from trainer.faults.rates import LrRestart, LrTooHigh
from trainer.faults.slow_rank import SlowRank
from trainer.faults.weights import FlippedWeights, FreshWeights, ScaledWeights

if TYPE_CHECKING:
    from lightning.pytorch import Callback

__all__ = [
    "FAULTS",
    "BadDocuments",
    "CorruptedShard",
    "Fault",
    "FlippedWeights",
    "Fp16Overflow",
    "FreshWeights",
    "LogitDrift",
    "LostMoments",
    "LrRestart",
    "LrTooHigh",
    "NanGradient",
    "PassingFault",
    "RepeatedDocuments",
    "ScaledWeights",
    "SlowRank",
    "StaleMoments",
    "StepFault",
    "StreamFault",
    "callbacks_of",
    "corrupt_file",
    "fault_of",
    "faults_section",
    "read_faults",
    "show_corrupted_corpus",
]

Fault: TypeAlias = StepFault | FreshWeights | StreamFault | CorruptedShard
F = TypeVar("F", bound=Fault)

FAULTS: Final[tuple[type[Fault], ...]] = (
    LrTooHigh,
    LrRestart,
    BadDocuments,
    RepeatedDocuments,
    CorruptedShard,
    ScaledWeights,
    FlippedWeights,
    LostMoments,
    StaleMoments,
    FreshWeights,
    LogitDrift,
    Fp16Overflow,
    NanGradient,
    SlowRank,
)
"""Every kind of fault, in the order of the configuration's section."""


def _field_of(kind: type[Fault]) -> tuple[Any, Any]:
    summary = (kind.__doc__ or "").partition("\n")[0]
    return kind | None, Field(default=None, description=summary)


_FIELDS: Final[dict[str, Any]] = {kind.name: _field_of(kind) for kind in FAULTS}
faults_section: type[BaseModel] = create_model("FaultsSection", __config__=SETTINGS, **_FIELDS)
"""The section `faults` of a configuration: each kind of fault by its name, null by default."""


def read_faults(given: object) -> dict[str, Fault]:
    """Check the section `faults` of a configuration; return the faults that are on, by name.

    Raises:
        pydantic.ValidationError: A fault does not exist, or a value is invalid.
    """
    section = faults_section.model_validate(given)
    return {name: fault for name, fault in section if fault is not None}


def fault_of(faults: Mapping[str, Any], kind: type[F]) -> F | None:
    """Return the fault of a kind; None if it is off."""
    fault: F | None = faults.get(kind.name)
    return fault


def callbacks_of(faults: Mapping[str, Any]) -> list[Callback]:
    """Return the faults that are callbacks of a trainer."""
    return [fault for fault in faults.values() if isinstance(fault, FaultCallback)]

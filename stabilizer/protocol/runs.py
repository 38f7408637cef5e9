"""Runs: registration, state, lists."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from stabilizer.protocol.batches import AttemptNumber, Step
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.sampling import SamplingPlan
from stabilizer.protocol.series import Catalog

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]

Key = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]*$")]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunState(StrEnum):
    """State of a run; `lost` is the collector's word for no sign of life."""

    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    LOST = "lost"


class RunRegister(_Message):
    """A job's first word. The same name and key come back to the same run."""

    protocol_version: int
    name: Name
    key: Key = ""
    """Tells runs of the same name apart, for example a scheduler's job id."""
    mode: Mode | None = None
    """None leaves it to the policy, which ships with `propose`."""
    policy: str | None = Field(default=None, max_length=200_000)
    """A rule file (YAML) for this run; None takes the collector's."""
    config: dict[str, JsonValue] = Field(default_factory=dict)
    world_size: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1
    global_batch: Annotated[int, Field(ge=1, le=2**53)] | None = None
    """Samples of one optimizer step over all ranks and microbatches."""
    catalogs: tuple[Catalog, ...] = ()
    git_revision: Annotated[str, Field(max_length=80)] | None = None
    start_step: Step = 0
    heartbeat_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """The job promises a sign of life at least this often."""


class RunRegistered(_Message):
    """The collector's answer to a registration."""

    run_id: str
    attempt: int
    """The number of the attempt that begins now."""
    plan: SamplingPlan
    mode: Mode
    protocol_version: int


class CatalogsAdd(_Message):
    """More series, found after the registration."""

    catalogs: Annotated[tuple[Catalog, ...], Field(min_length=1, max_length=100)]


class RunUpdate(_Message):
    """A person's change to a run."""

    mode: Mode
    reason: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"\S")]


class Heartbeat(_Message):
    """A sign of life without frames, or a change of state."""

    attempt: AttemptNumber
    step: Step
    state: RunState = RunState.RUNNING
    message: Annotated[str, Field(max_length=2000)] = ""


class Attempt(_Message):
    """A stretch of a run between two starts or rollbacks."""

    number: int
    from_step: int
    last_step: int
    parent: int | None
    reason: str
    command_id: str | None
    skipped_samples: int
    started_at: datetime


class Run(_Message):
    """A training job through all restarts and rollbacks."""

    id: str
    name: str
    key: str
    state: RunState
    mode: Mode
    attempt: int
    step: int
    world_size: int
    global_batch: int | None
    git_revision: str | None
    rules_hash: str
    config: dict[str, JsonValue]
    created_at: datetime
    last_seen_at: datetime
    open_incident_id: str | None
    attempts: tuple[Attempt, ...] = ()

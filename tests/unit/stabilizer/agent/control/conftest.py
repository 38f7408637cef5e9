"""Commands, clocks and a fake training for the control's tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from stabilizer.agent.control.agreement import SingleProcess
from stabilizer.agent.control.executor import Executor
from stabilizer.agent.control.inbox import CommandInbox
from stabilizer.agent.control.limits import Limits
from stabilizer.agent.control.optimizer_step import LrOverride
from stabilizer.agent.control.snapshots import Snapshot, SnapshotRing
from stabilizer.errors import CommandRejectedError, RestoreError
from stabilizer.protocol.batches import SnapshotInfo
from stabilizer.protocol.commands import (
    Command,
    CommandState,
    PauseParameters,
    RollbackParameters,
    SnapshotTarget,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


class FrozenClock:
    def __init__(self):
        self.time = START

    def now(self):
        return self.time

    def monotonic(self):
        return (self.time - START).total_seconds()


class FakeTraining:
    """Is at a step; restores on request."""

    def __init__(self):
        self.step = 30
        self.samples = 300
        self.is_ending = False
        self.unsupported = None
        self.refusal = None
        self.failure = None
        self.checkpoint_failure = None
        self.drift = 0
        self.stopped = False
        self.restored = []

    def check(self, snapshot):
        if self.refusal is not None:
            raise CommandRejectedError("does not fit", reason=self.refusal)

    def restore(self, snapshot, skip_steps):
        if self.failure is not None:
            raise RestoreError(self.failure)
        self.restored.append((snapshot.info.id, skip_steps))
        skipped = 10 * skip_steps
        self.step = snapshot.info.step + self.drift
        self.samples = snapshot.info.samples + skipped
        return skipped

    def stop(self):
        self.stopped = True

    def save_checkpoint(self, name):
        if self.checkpoint_failure is not None:
            raise self.checkpoint_failure
        return f"/checkpoints/{name}"


ATTEMPT_IDS = [f"{number:032x}" for number in range(100)]


class FakeEvents:
    def __init__(self):
        self.attempt = 1
        self.starts, self.markers, self.pauses = [], [], []
        self.on_paused = None

    def begin_attempt(self, start):
        self.starts.append(start)
        self.attempt += 1

    @property
    def attempt_id(self):
        return ATTEMPT_IDS[self.attempt]

    def marker(self, marker):
        self.markers.append(marker)

    def set_paused(self, paused, step):
        self.pauses.append((paused, step))
        if paused and self.on_paused is not None:
            self.on_paused()


_NUMBERS = count(1)


def make_command(parameters=None, *, attempt=1, ttl_seconds=60, state=CommandState.PENDING):
    return Command(
        id=f"c{next(_NUMBERS)}",
        run_id="run",
        attempt=attempt,
        attempt_id=ATTEMPT_IDS[attempt],
        parameters=parameters or PauseParameters(),
        state=state,
        reason="manual",
        issued_at=START,
        expires_at=START + timedelta(seconds=ttl_seconds),
    )


def make_snapshot(step, sequence, *, attempt=1, num_bytes=100, finite=True, samples=None):
    info = SnapshotInfo(
        id=f"step{step}-{sequence}", attempt=attempt, attempt_id=ATTEMPT_IDS[attempt], step=step,
        finite=finite,
        samples=10 * step if samples is None else samples, num_bytes=num_bytes if finite else 0,
    )  # fmt: skip
    return Snapshot(info, {"step": step} if finite else None)


def make_rollback(snapshot, **options):
    info = snapshot.info
    target = SnapshotTarget(
        snapshot_id=info.id, attempt=info.attempt, attempt_id=info.attempt_id, step=info.step
    )
    return RollbackParameters(target=target, **options)


@pytest.fixture
def clock():
    return FrozenClock()


@pytest.fixture
def make():
    return SimpleNamespace(command=make_command, snapshot=make_snapshot, rollback=make_rollback)


@pytest.fixture
def control(clock):
    """An executor with everything around it, over one optimizer of rate 0.1."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    results = []
    scene = SimpleNamespace(
        training=FakeTraining(),
        events=FakeEvents(),
        ring=SnapshotRing(4, 10_000),
        override=LrOverride(),
        agreement=SingleProcess(),
        optimizer=optimizer,
        results=results,
    )
    scene.inbox = CommandInbox(clock, results.append)
    scene.override.attach([optimizer])
    scene.executor = Executor(
        scene.training,
        scene.events,
        scene.inbox,
        scene.ring,
        scene.override,
        scene.agreement,
        limits=Limits(max_rollbacks=3, max_skip_steps=500),
    )

    def step():
        parameter.grad = torch.ones(2)
        optimizer.step()
        scene.executor.after_step()

    scene.step = step
    return scene

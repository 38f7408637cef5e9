"""Whatever a collector, or a liar in its place, sends: training goes on within the job's limits."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta

import pytest
import torch
from torch import nn

from stabilizer.agent import Job, Limits
from stabilizer.agent.control.agreement import SingleProcess
from stabilizer.agent.control.snapshots import Snapshot
from stabilizer.agent.integrations.job import JobSubject, NullTelemetry
from stabilizer.agent.integrations.settings import JobSettings
from stabilizer.agent.telemetry.client import TelemetryClient
from stabilizer.agent.telemetry.http import HttpResponse
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.errors import TelemetryError
from stabilizer.protocol.batches import SnapshotInfo

STEPS = 60
ANSWERS_PER_STEP = 60
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SEALED = Limits(
    min_lr_scale=1.0, max_rollbacks=0, max_skip_steps=0, allow_pause=False, allow_stop=False
)
ODD_VALUES = [
    None, True, -1, 0, 1, 2**63, 10**400, -1e308, 1e-320, "", "nan", "inf", "x" * 5000, "\x00",
    "2026-01-01T00:00:00", "9999-12-31T23:59:59Z", [], {}, [[]], {"kind": "rollback"}, "\ud83d",
]  # fmt: skip


class Clock:
    def now(self):
        return NOW

    def monotonic(self):
        return 0.0


class Telemetry(NullTelemetry):
    run_id = "run"

    def __init__(self):
        self.results = []

    def result(self, result):
        self.results.append(result)


class Training:
    """Restores weights; stops and checkpoints are only counted."""

    is_ending, unsupported = False, None

    def __init__(self, model):
        self.model, self.step, self.stops = model, 0, 0

    @property
    def samples(self):
        return self.step

    def check(self, snapshot):
        pass

    def restore(self, snapshot, skip_steps):
        self.model.load_state_dict(snapshot.state)
        self.step = snapshot.info.step
        return 0

    def stop(self):
        self.stops += 1

    def save_checkpoint(self, name):
        return name


class Scene:
    """A job over a small real model, whose collector answers whatever a test says."""

    def __init__(self, limits, monkeypatch):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.training = Training(self.model)
        self.telemetry = Telemetry()
        settings = JobSettings(url="http://x", run="r", snapshot_every=10, limits=limits)
        self.job = Job(settings, Clock())
        monkeypatch.setattr(self.job, "_make_telemetry", lambda register: self.telemetry)
        self.job.start(
            JobSubject(
                model=self.model,
                optimizers=[self.optimizer],
                groups=("0",),
                training=self.training,
                agreement=SingleProcess(),
                take_snapshot=self.take,
            )
        )
        self.client = TelemetryClient(self, ReporterSettings())
        self.body = b""

    def take(self, snapshot_id, attempt):
        info = SnapshotInfo(id=snapshot_id, attempt=attempt, step=self.training.step, finite=True,
                            samples=self.training.step)  # fmt: skip
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        return Snapshot(info, state)

    def request(self, request):
        return HttpResponse(200, self.body)

    def close(self):
        pass

    def hear(self, body):
        """Take an answer as the sender thread does."""
        self.body = body
        try:
            answer = self.client.send_frames("run", b"")
        except TelemetryError:
            return
        self.job._take_answer(answer)

    def train(self, answers):
        losses = []
        for step in range(STEPS):
            for body in answers(step):
                self.hear(body)
            self.job.boundary()
            self.job.begin_step(self.training.step + 1)
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.job.log_loss(loss.detach())
            self.job.before_optimizer_step(self.optimizer, self.model.parameters(), is_first=True)
            self.optimizer.step()
            self.training.step += 1
            self.job.end_step(self.training.step)
            losses.append(loss.item())
        self.job.finish(self.training.step)
        return losses

    def answer(self, generator):
        """An answer with one command that the job would obey if it had no limits."""
        number = generator.getrandbits(64)
        target = generator.choice(self.job.ring.inventory() or (None,))
        kinds = [
            {"kind": "pause"},
            {"kind": "stop"},
            {"kind": "resume"},
            {"kind": "checkpoint_now"},
            {"kind": "reduce_lr", "factor": generator.choice([0.5, 1e-12, 1.0])},
        ]
        if target is not None:
            aim = {"snapshot_id": target.id, "attempt": 1, "step": target.step}
            aim["attempt_id"] = target.attempt_id
            kinds.append({"kind": "rollback", "target": aim, "skip_steps": 10**6})
            kinds.append({"kind": "rollback", "target": aim})
        command = {
            "id": f"c{number}",
            "run_id": "run",
            "attempt": 1,
            "attempt_id": self.job.attempt_id,
            "parameters": generator.choice(kinds),
            "state": "pending",
            "reason": "manual",
            "fence": 0,
            "issued_at": NOW.isoformat(),
            "expires_at": (NOW + timedelta(hours=1)).isoformat(),
        }
        return {
            "attempt": 1,
            "accepted_sequence": 0,
            "commands": [command],
            "plan": {"every": 10},
            "healthy_snapshots": [],
        }


def mutate(generator, value):
    """Replace one part of a message, at any depth, by something odd."""
    if isinstance(value, dict) and value and generator.random() < 0.85:
        key = generator.choice(sorted(value))
        return value | {key: mutate(generator, value[key])}
    if isinstance(value, list) and value and generator.random() < 0.85:
        return [mutate(generator, value[0]), *value[1:]]
    return generator.choice(ODD_VALUES)


def hostile_bodies(scene, generator):
    def answers(_step):
        for _ in range(ANSWERS_PER_STEP):
            message = scene.answer(generator)
            for _ in range(generator.randrange(4)):
                message = mutate(generator, message)
            body = bytearray(json.dumps(message), "utf-8")
            if generator.random() < 0.2:
                for _ in range(generator.randrange(1, 6)):
                    body[generator.randrange(len(body))] = generator.randrange(256)
            yield bytes(body)

    return answers


def test_thousands_of_hostile_answers_change_no_loss(monkeypatch):
    undisturbed = Scene(Limits(), monkeypatch).train(lambda _step: ())
    scene = Scene(SEALED, monkeypatch)
    losses = scene.train(hostile_bodies(scene, random.Random(5)))
    assert losses == undisturbed
    reasons = {result.reason for result in scene.telemetry.results}
    assert {"beyond_limits", "other_run", "past_attempt"} <= reasons  # they were really read
    assert scene.training.stops == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_no_answers_move_a_job_beyond_its_limits(monkeypatch, seed):
    limits = Limits(min_lr_scale=0.2, max_rollbacks=2, allow_pause=False, allow_stop=False)
    scene = Scene(limits, monkeypatch)
    scales = []
    monkeypatch.setattr(
        scene.telemetry, "put", lambda frames: scales.append(scene.job.override.scale)
    )
    scene.train(hostile_bodies(scene, random.Random(seed)))
    assert min(scales) >= 0.2 - 1e-9
    assert min(scales) < 1
    starts = [result for result in scene.telemetry.results if result.state == "applied"]
    rollbacks = [result for result in starts if result.read_back.attempt > 1]
    assert rollbacks
    assert scene.job.attempt == 3
    assert scene.job.state_dict()["rollbacks"] == 2

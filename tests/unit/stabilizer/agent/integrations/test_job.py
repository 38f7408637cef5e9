from __future__ import annotations

import copy
from datetime import UTC, datetime

import pytest
import torch
from torch import nn

from stabilizer.agent import Job, StabilizerCallback
from stabilizer.agent.control.agreement import SingleProcess
from stabilizer.agent.control.optimizer_step import GuardPolicy
from stabilizer.agent.control.snapshots import Snapshot
from stabilizer.agent.integrations.job import (
    JobSubject,
    NullTelemetry,
    derive_attempt_id,
    scheduler_job,
)
from stabilizer.agent.integrations.settings import JobSettings
from stabilizer.errors import ConfigurationError
from stabilizer.protocol.batches import AttemptStart, SnapshotInfo
from stabilizer.protocol.commands import ReduceLrParameters
from stabilizer.rules.loader import default_rules


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def now(self):
        return datetime.fromtimestamp(1000 + self.seconds, UTC)

    def monotonic(self):
        return self.seconds


class Telemetry(NullTelemetry):
    def __init__(self):
        self.frames, self.markers, self.inventories, self.states = [], [], [], []
        self.attempts = []
        self.closed = None

    def put(self, frames):
        self.frames.append(frames)

    def begin_attempt(self, attempt_id, start):
        self.attempts.append((attempt_id, start))

    def marker(self, marker):
        self.markers.append(marker)

    def set_snapshots(self, infos):
        self.inventories.append([(info.step, info.attempt) for info in infos])

    def set_state(self, state, step, message=""):
        self.states.append((state.value, step, message))

    def close(self, state, timeout_seconds=5.0):
        self.closed = state


class Training:
    def __init__(self):
        self.step, self.samples, self.is_ending, self.unsupported = 0, 0, False, None


@pytest.fixture
def scene(monkeypatch):
    """A job over a tiny model, telling a list instead of a collector."""

    class Scene:
        def __init__(self):
            self.telemetry, self.training, self.clock = Telemetry(), Training(), Clock()
            self.taken = []

        def take(self, snapshot_id, attempt):
            step = self.training.step
            self.taken.append(step)
            info = SnapshotInfo(id=snapshot_id, attempt=attempt, step=step, finite=True)
            return Snapshot(info, {"step": step})

        def run(self, steps):
            for _ in range(steps):
                self.job.boundary()
                self.job.begin_step(self.training.step + 1)
                self.model(torch.ones(1, 2)).sum().backward()
                self.clock.seconds += 0.5
                self.job.log_loss(torch.tensor(3.0))
                self.job.before_optimizer_step(
                    self.optimizer, self.model.parameters(), is_first=True
                )
                self.optimizer.step()
                self.training.step += 1
                self.job.end_step(self.training.step)

        def values(self, index=-1):
            values = {}
            for catalog, block in self.telemetry.frames[index].blocks():
                present = block.present[0] if block.present is not None else [True] * len(catalog)
                for key, value, given in zip(catalog.series, block.values[0], present, strict=True):
                    if given:
                        values[str(key)] = float(value)
            return values

    made = Scene()
    made.model = nn.Linear(2, 1)
    made.optimizer = torch.optim.SGD(made.model.parameters(), lr=0.1)
    made.job = Job(JobSettings(url="http://x", run="r", snapshot_every=3), made.clock)
    monkeypatch.setattr(made.job, "_make_telemetry", lambda register: made.telemetry)
    made.subject = JobSubject(
        model=made.model,
        optimizers=[made.optimizer],
        groups=("0",),
        training=made.training,
        agreement=SingleProcess(),
        take_snapshot=made.take,
    )
    return made


def test_a_step_is_reported_with_rates_and_time(scene):
    scene.job.start(scene.subject)
    scene.run(2)
    values = scene.values()
    assert values["loss"] == 3.0
    assert values['lr{group="0"}'] == pytest.approx(0.1)
    assert values["lr_scale"] == 1.0
    assert values["step_seconds"] == 0.5
    assert values["grad_norm"] > 0
    assert [frames.step for frames in scene.telemetry.frames] == [1, 2]


@pytest.mark.parametrize(
    ("logged", "expected"),
    [
        ([], {"loss": 3.0}),
        (["loss"], {"loss": 7.0, "loss_total": 3.0}),
        (["loss", "loss_total"], {"loss": 7.0, "loss_total": 7.0}),
    ],
)
def test_what_the_module_logs_itself_goes_before(scene, logged, expected):
    scene.job.start(scene.subject)
    log_loss = scene.job.log_loss

    def log_all(loss):
        for name in logged:
            scene.job.log(name, torch.tensor(7.0))
        scene.job.log("loss", 5.0, source="web")
        log_loss(loss)

    scene.job.log_loss = log_all
    scene.run(1)
    values = scene.values()
    assert {k: v for k, v in values.items() if k in ("loss", "loss_total")} == expected
    assert values['loss{source="web"}'] == 5.0


def test_snapshots_are_taken_when_due_and_once(scene):
    scene.job.start(scene.subject)
    scene.training.step = 1
    scene.run(9)
    scene.job.boundary()
    assert scene.taken == [1, 3, 6, 9]  # the first one at once, wherever the job starts
    assert scene.telemetry.inventories[-1] == [(1, 1), (3, 1), (6, 1), (9, 1)]


def test_attempts_and_snapshots_keep_their_ids(scene):
    scene.job.start(scene.subject)
    scene.run(4)
    first = scene.job.attempt_id
    scene.job.begin_attempt(AttemptStart(from_step=3, parent_id=first))
    scene.run(3)
    second = scene.job.attempt_id
    held = [(info.step, info.attempt, info.attempt_id) for info in scene.job.ring.inventory()]
    assert held == [(0, 1, first), (3, 1, first), (6, 2, second)]
    ((begun, start),) = scene.telemetry.attempts
    assert (begun, start.parent_id, scene.job.attempt) == (second, first, 2)


def test_every_rank_names_attempts_by_the_ids_of_rank_0(scene, monkeypatch):
    monkeypatch.setattr(scene.subject.agreement, "share_id", lambda own: "a" * 32)
    scene.job.start(scene.subject)
    assert scene.job.attempt_id == "a" * 32
    scene.job.begin_attempt(AttemptStart(from_step=0))
    assert scene.job.attempt_id == derive_attempt_id("a" * 32, 2)


def test_the_end_of_a_cut_is_told(scene):
    scene.job.start(scene.subject)
    scene.job.override.cut(ReduceLrParameters(factor=0.5, hold_steps=2))
    scene.run(3)
    assert [(m.kind, m.step) for m in scene.telemetry.markers] == [("lr_change", 2)]
    assert scene.values(0)["lr_scale"] == 0.5
    assert scene.values(2)["lr_scale"] == 1.0


def test_a_new_phase_is_told_at_the_step_that_is_complete(scene):
    scene.job.start(scene.subject)
    scene.run(3)
    scene.job.phase("unfrozen: vision" + "!" * 600)
    (marker,) = scene.telemetry.markers
    assert (marker.kind, marker.step) == ("phase_change", 3)
    assert marker.text.startswith("unfrozen: vision!")
    assert len(marker.text) == 500


def test_a_phase_before_or_after_training_is_told_to_nobody(scene):
    scene.job.phase("before")
    scene.job.start(scene.subject)
    scene.run(1)
    scene.job.finish(1)
    scene.job.phase("after")
    assert scene.telemetry.markers == []


def test_finish_and_fail_close_once(scene):
    scene.job.start(scene.subject)
    scene.run(1)
    scene.job.finish(1)
    scene.job.fail(1, "afterwards")
    assert scene.telemetry.states == [("finished", 1, "")]
    assert scene.telemetry.closed == "finished"
    assert len(scene.job.ring) == 0
    scene.run(1)  # whoever still calls is not heard
    assert len(scene.telemetry.frames) == 1


def test_a_failure_is_told_with_its_message(scene):
    scene.job.start(scene.subject)
    scene.job.fail(0, "ValueError: no")
    assert scene.telemetry.states == [("failed", 0, "ValueError: no")]


def test_followers_measure_nothing_and_obey(scene):
    scene.subject.agreement.is_leader = False
    scene.job.start(scene.subject)
    scene.run(4)
    scene.job.log("loss", 1.0)
    assert scene.telemetry.frames == []
    assert scene.taken == [0, 3]


def test_a_job_that_cannot_be_snapshotted_goes_on(scene):
    scene.take = lambda snapshot_id, attempt: None
    object.__setattr__(scene.subject, "take_snapshot", scene.take)
    scene.job.start(scene.subject)
    scene.run(4)
    assert scene.telemetry.inventories == []
    assert len(scene.telemetry.frames) == 4


@pytest.mark.parametrize(
    ("obstacle", "expected"), [(None, ("exact", "")), ("no loader", ("none", "no loader"))]
)
def test_the_registration_says_whether_the_job_can_be_rewound(
    scene, monkeypatch, obstacle, expected
):
    seen = []
    monkeypatch.setattr(
        scene.job, "_make_telemetry", lambda register: seen.append(register) or scene.telemetry
    )
    scene.training.unsupported = obstacle
    scene.job.start(scene.subject)
    assert [(register.rewind, register.rewind_reason) for register in seen] == [expected]


def test_a_step_that_the_guard_empties_is_reported(scene):
    scene.job.guard.policy = GuardPolicy.SKIP_STEP
    scene.job.start(scene.subject)
    hook = scene.model.weight.register_hook(lambda grad: grad * float("nan"))
    scene.run(1)
    hook.remove()
    scene.run(1)
    assert [scene.values(index)["step_skipped"] for index in (0, 1)] == [1.0, 0.0]
    assert torch.isfinite(scene.model.weight).all()


def test_before_training_everything_is_silent(scene):
    scene.job.boundary()
    scene.job.log("anything", 1.0)
    scene.job.log_loss(1.0)
    scene.job.begin_step(1)
    scene.job.before_optimizer_step(scene.optimizer, [], is_first=True)
    scene.job.end_step(1)
    scene.job.finish(1)
    assert not scene.job.is_started
    assert copy.deepcopy({"job": scene.job})["job"] is scene.job


@pytest.fixture
def introduce(scene, monkeypatch):
    """Start a job over the scene's model and return its registration."""

    def start(job):
        registrations = []

        def make(register):
            registrations.append(register)
            return scene.telemetry

        monkeypatch.setattr(job, "_make_telemetry", make)
        job.start(scene.subject)
        return registrations[0]

    return start


def test_state_is_saved_and_continued(scene, introduce):
    scene.job.override.cut(ReduceLrParameters(factor=0.5))
    scene.job.start(scene.subject)
    scene.telemetry.run_id = "b" * 32
    saved = scene.job.state_dict()
    fresh = Job(JobSettings(url=None, run="r"), scene.clock)
    fresh.load_state_dict(saved)
    assert fresh.override.scale == 0.5
    resumes = introduce(fresh).resumes
    assert (resumes.run_id, resumes.attempt_id) == ("b" * 32, scene.job.attempt_id)
    scene.telemetry.run_id = None  # not registered before the next checkpoint
    assert fresh.state_dict()["attempt"] == {
        "run_id": "b" * 32, "attempt_id": fresh.attempt_id,
    }  # fmt: skip


def test_a_checkpoint_of_version_0_1_is_resumed(scene, introduce):
    saved = scene.job.state_dict()
    del saved["attempt"]
    scene.job.load_state_dict(saved)
    assert introduce(scene.job).resumes is None


def test_a_saved_attempt_that_is_damaged_does_not_stop_the_job(scene, introduce, caplog):
    scene.job.load_state_dict(scene.job.state_dict() | {"attempt": {"attempt_id": "x"}})
    assert introduce(scene.job).resumes is None
    assert "the checkpoint does not say which run wrote it" in caplog.text


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, ("slurm::7", 0)),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}, ("slurm::7", 2)),
        (
            {
                "SLURM_JOB_ID": "9",
                "SLURM_ARRAY_JOB_ID": "7",
                "SLURM_ARRAY_TASK_ID": "1",
                "SLURM_CLUSTER_NAME": "alps",
            },
            ("slurm:alps:7_1", 0),
        ),
        (
            {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1"},
            ("torchelastic:x", 1),
        ),
        ({"TORCHELASTIC_RUN_ID": "x", "SLURM_JOB_ID": "7"}, ("slurm::7", 0)),
        ({"TORCHELASTIC_RUN_ID": "none"}, None),
        ({"SLURM_JOB_ID": "7\n"}, None),
    ],
)
def test_the_schedulers_id_is_sent(environment, expected):
    job = scheduler_job(environment)
    assert (job and (job.id, job.restarts)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshot_every": 0}, "snapshot_every is 0"),
        ({"keep_snapshots": 0}, "keep_snapshots is 0"),
        ({"snapshot_bytes": 0}, "snapshot_bytes is 0"),
        ({"mode": "perhaps"}, "mode is 'perhaps'; allowed: observe, propose, auto"),
        ({"guard": "perhaps"}, "guard is 'perhaps'"),
        ({"run": ""}, "run is ''; allowed: 1 to 200 characters"),
        ({"run": "a\nb"}, "run is 'a.nb'; allowed"),
        ({"run": "x" * 201}, "run is 'x+'; allowed"),
        ({"key": "a\x00"}, "key is .*; allowed: 0 to 200 characters"),
        ({"url": "localhost:8000"}, "url is not usable; allowed: an address http"),
        ({"url": "http://localhost:8000/api/v1"}, "without /api/v1"),
        ({"token": "two words"}, "token is not usable"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_training(options, message):
    with pytest.raises(ConfigurationError, match=message):
        StabilizerCallback(**{"url": "http://x", "run": "r", **options})


def test_a_policy_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none.yaml' cannot be read: .*No such file"):
        StabilizerCallback(None, run="r", policy=tmp_path / "none.yaml")


@pytest.mark.parametrize("url", [None, "http://x"])
def test_mistakes_of_a_policy_are_told_with_file_line_and_field(tmp_path, url):
    file = tmp_path / "mine.yaml"
    file.write_text("policy:\n  mode: sometimes\n  bananas: 3\n")
    with pytest.raises(ConfigurationError) as caught:
        StabilizerCallback(url, run="r", policy=file)
    assert f"{file}:2: policy.mode: is 'sometimes'" in str(caught.value)
    assert f"{file}:3: policy.bananas: is not a field here" in str(caught.value)


def test_a_policy_is_kept_as_it_was_checked(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(default_rules().text)
    settings = JobSettings(url=None, run="r", policy=file)
    file.unlink()
    assert settings.policy_text() == default_rules().text

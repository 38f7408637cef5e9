import json
import math
import resource
from types import SimpleNamespace

import pytest
import torch

from trainer.module import IdeficsModule, LossRecorder, as_json


class Seconds:
    def __init__(self):
        self.value = 0.0

    def monotonic(self):
        self.value += 0.5
        return self.value


@pytest.fixture
def module():
    return IdeficsModule.__new__(IdeficsModule)


@pytest.fixture
def feed(tmp_path, module):
    """Return a function that records microbatches given as (global step after it, loss)."""

    def run(*microbatches):
        with LossRecorder(tmp_path / "losses.jsonl", Seconds()) as recorder:
            for step, loss in microbatches:
                losses = {"loss": torch.tensor(loss), "z_loss": torch.tensor(2.0)}
                object.__setattr__(module, "last_losses", losses)
                optimizer = SimpleNamespace(param_groups=[{"lr": 0.25}])
                trainer = SimpleNamespace(global_step=step)
                recorder.on_before_optimizer_step(trainer, module, optimizer)
                recorder.on_train_batch_end(trainer, module, None, None, 0)
        lines = (tmp_path / "losses.jsonl").read_text().splitlines()
        return recorder, [json.loads(line) for line in lines]

    return run


def test_every_step_is_a_line(feed):
    _, lines = feed((1, 3.0), (2, 2.0))
    assert lines[0] == {
        "attempt": 1,
        "step": 1,
        "loss": 3.0,
        "z_loss": 2.0,
        "lr": 0.25,
        "seconds": 0.5,
    }
    assert [line["step"] for line in lines] == [1, 2]


def test_microbatches_of_a_step_are_averaged(feed):
    _, lines = feed((0, 3.0), (1, 5.0), (1, 1.0), (2, 2.0))
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 4.0), (2, 1.5)]


def test_a_step_that_comes_back_begins_a_new_attempt(feed):
    recorder, lines = feed((1, 1.0), (2, 2.0), (3, 3.0), (2, 2.5), (3, 3.5))
    assert [(line["attempt"], line["step"]) for line in lines] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 2),
        (2, 3),
    ]
    assert recorder.losses == [1.0, 2.5, 3.5]
    assert recorder.attempt == 2


def test_losses_that_are_not_finite_are_strict_json(feed):
    recorder, lines = feed((1, math.nan), (2, math.inf), (3, -math.inf))
    assert [line["loss"] for line in lines] == ["NaN", "Infinity", "-Infinity"]
    assert [float(line["loss"]) for line in lines][1:] == recorder.losses[1:]


@pytest.mark.parametrize("value", [None, 3, 1.5, "text"])
def test_other_values_stay_as_they_are(value):
    assert as_json(value) == value


def test_a_resumed_job_continues_behind_what_is_there_as_another_attempt(tmp_path, module):
    path = tmp_path / "losses.jsonl"

    def record(steps, **options):
        with LossRecorder(path, Seconds(), **options) as recorder:
            for step in steps:
                losses = {"loss": torch.tensor(float(step)), "z_loss": torch.tensor(2.0)}
                object.__setattr__(module, "last_losses", losses)
                trainer = SimpleNamespace(global_step=step)
                recorder.on_train_batch_end(trainer, module, None, None, 0)
        return recorder

    record([1, 2, 3, 4])
    with path.open("a") as file:
        file.write('{"attempt": 1, "step": 5, "lo')  # died in the middle of a line
    recorder = record([3, 4], resumed_step=2)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["attempt"], line["step"]) for line in lines] == [
        (1, 1), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4),
    ]  # fmt: skip
    assert recorder.losses == [1.0, 2.0, 3.0, 4.0]


def test_a_resume_without_a_file_begins_one(tmp_path):
    with LossRecorder(tmp_path / "losses.jsonl", resumed_step=7) as recorder:
        assert recorder.attempt == 1
    assert (tmp_path / "losses.jsonl").read_text() == ""


def test_a_cut_last_line_is_dropped_without_writing_the_others_anew(tmp_path):
    path = tmp_path / "losses.jsonl"
    whole = '{"attempt": 1, "step": 1, "loss": 2.0}\n'
    path.write_text(whole + '{"attempt": 1, "st')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))  # as if the disk were full
    try:
        with LossRecorder(path, resumed_step=1) as recorder:
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == whole
    assert recorder.losses == [2.0]


def test_a_file_of_one_cut_line_is_emptied(tmp_path):
    path = tmp_path / "losses.jsonl"
    path.write_text('{"attempt": 1')
    with LossRecorder(path, resumed_step=1) as recorder:
        assert recorder.attempt == 1
    assert path.read_bytes() == b""

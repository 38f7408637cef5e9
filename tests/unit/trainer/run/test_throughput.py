from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trainer.run.throughput import DataWait, Throughput


class Clock:
    at = 10.0

    def monotonic(self):
        return self.at


class Job:
    def __init__(self):
        self.logged = []

    def log(self, name, value, **labels):
        self.logged.append((name, float(value), labels))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def job():
    return Job()


@pytest.fixture
def run(clock, job):
    """Return a function that lets microbatches pass: (global step behind it, seconds, tokens)."""

    def through(throughput, *microbatches, world_size=1, scaler=None):
        trainer = SimpleNamespace(
            global_step=0, world_size=world_size, precision_plugin=SimpleNamespace(scaler=scaler)
        )
        module = SimpleNamespace(stabilizer_job=job)
        throughput.on_train_start(trainer, module)
        for step, seconds, tokens in microbatches:
            mask = torch.zeros(2, 10, dtype=torch.long)
            mask.view(-1)[:tokens] = 1
            throughput.on_train_batch_start(trainer, module, {"attention_mask": mask}, 0)
            clock.at += seconds
            trainer.global_step = step
            throughput.on_train_batch_end(trainer, module, None, None, 0)
        return throughput

    return through


def values(job, name):
    return [value for logged, value, _ in job.logged if logged == name]


def test_tokens_without_padding_count_per_second_over_all_ranks(run, clock, job):
    throughput = Throughput(wait=DataWait(clock), clock=clock)
    run(throughput, (1, 2.0, 12), (2, 1.0, 8), world_size=3)
    assert values(job, "tokens_per_second") == [18.0, 24.0]
    assert throughput.tokens_per_second == pytest.approx(20.0)
    assert throughput.mfu is None
    assert values(job, "mfu") == []


def test_microbatches_of_a_step_add_up(run, clock, job):
    throughput = Throughput(
        wait=DataWait(clock), clock=clock, flops_per_sequence=5, peak_flops=100.0
    )
    run(throughput, (0, 1.0, 10), (1, 1.0, 6))
    assert values(job, "tokens_per_second") == [8.0]
    assert values(job, "mfu") == pytest.approx([4 * 5 / 2.0 / 100.0])
    assert throughput.mfu == pytest.approx(0.1)


def test_a_step_that_a_rewind_has_cut_off_is_not_counted(run, clock, job):
    run(Throughput(wait=DataWait(clock), clock=clock), (1, 1.0, 5), (2, 1.0, 5), (1, 1.0, 7))
    assert values(job, "tokens_per_second") == [5.0, 5.0, 7.0]


def test_waiting_for_data_is_that_of_the_step(run, clock, job):
    wait = DataWait(clock)
    throughput = Throughput(wait=wait, clock=clock)

    def fetch(seconds):
        with wait.profile("[_TrainingEpochLoop].train_dataloader_next"):
            clock.at += seconds
        with wait.profile("run_training_batch"):
            clock.at += 9.0

    fetch(1.0)
    fetch(0.5)
    assert wait.take() == pytest.approx(1.5)
    run(throughput, (1, 1.0, 5))
    assert values(job, "data_wait_seconds") == [0.0]


def test_the_health_of_the_data_goes_with_it(run, clock, job):
    metric = SimpleNamespace(name="documents_read", value=3.0, labels={"source": "web"})
    loader = SimpleNamespace(health=[metric])
    run(Throughput(wait=DataWait(clock), loader=loader, clock=clock), (1, 1.0, 5))
    assert ("documents_read", 3.0, {"source": "web"}) in job.logged


def test_nothing_is_known_before_the_first_step(clock):
    throughput = Throughput(wait=DataWait(clock), clock=clock, peak_flops=1.0)
    assert throughput.tokens_per_second is None
    assert throughput.mfu is None

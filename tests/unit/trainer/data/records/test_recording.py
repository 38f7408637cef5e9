import math
from types import SimpleNamespace

import pytest
import torch

from trainer.data import StreamLoader
from trainer.data.records import SampleLedger, StreamRecorder, read_ledger


class Job:
    """A loop that reads, steps and rewinds as a trainer does."""

    def __init__(self, loader, folder, accumulate=1):
        self.loader = loader
        self.folder = folder
        self.recorder = StreamRecorder(
            SampleLedger.begin(folder, 10**6, rank=0, resumes=False), loader
        )
        self.trainer = SimpleNamespace(global_step=0)
        self.module = SimpleNamespace(last_document_losses=None)
        self._accumulate = accumulate
        self.recorder.on_train_start(self.trainer, self.module)

    def train(self, steps):
        iterator = iter(self.loader)
        for _ in range(steps):
            for microbatch in range(self._accumulate):
                batch = next(iterator)
                self.recorder.on_train_batch_start(self.trainer, self.module, batch, 0)
                numbers = torch.arange(len(batch["sample_ids"]))
                means = numbers + 10.0 * self.trainer.global_step
                self.module.last_document_losses = means, torch.ones_like(means)
                self.trainer.global_step += microbatch == self._accumulate - 1
                self.recorder.on_train_batch_end(self.trainer, self.module, None, batch, 0)

    def rewind(self, step, samples, skip):
        self.trainer.global_step = step
        self.loader.load_state_dict({"samples": samples})
        self.loader.skip_samples(skip)

    def entries(self):
        return list(read_ledger(self.folder))


@pytest.fixture
def make_job(make_stream, tmp_path):
    jobs = []

    def make(accumulate=1, **fields):
        loader = StreamLoader(make_stream(**fields), batch_size=2, epoch_samples=40)
        jobs.append(Job(loader, tmp_path / "ledger", accumulate))
        return jobs[-1]

    yield make
    for job in jobs:
        job.recorder.on_train_end(job.trainer, job.module)


def test_every_step_is_written_with_its_documents_and_losses(make_job, make_stream):
    job = make_job()
    job.train(3)
    stream = make_stream()
    for number, entry in enumerate(job.entries()):
        assert (entry.attempt, entry.step, entry.rank) == (1, number + 1, 0)
        assert list(entry.positions) == [2 * number, 2 * number + 1]
        reads = [stream.read(position).sample for position in entry.positions]
        assert list(entry.sample_ids) == [sample.sample_ids[0] for sample in reads]
        assert list(entry.sources) == [sample.sources[0] for sample in reads]
        assert list(entry.losses) == [10.0 * number, 10.0 * number + 1]


def test_microbatches_of_a_step_stand_in_one_line(make_job):
    job = make_job(accumulate=2)
    job.train(2)
    entries = job.entries()
    assert [list(entry.positions) for entry in entries] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert list(entries[0].rows) == [0, 1, 2, 3]


def test_packed_documents_stand_with_their_rows(make_job):
    packing = {"data.packing": {"documents": 8, "rows": 3}, "data.sequence_length": 112}
    job = make_job(**packing, **{"data.max_images": 8})
    job.train(1)
    (entry,) = job.entries()
    assert len(entry.sample_ids) == len(entry.rows) == len(entry.losses) > 2
    assert set(entry.rows) == {0, 1}


def test_a_rewind_begins_an_attempt_and_shows_what_was_skipped(make_job):
    job = make_job()
    job.train(4)
    job.rewind(step=2, samples=4, skip=6)
    job.train(2)
    entries = job.entries()
    assert [(e.attempt, e.step) for e in entries] == [
        *((1, step) for step in (1, 2, 3, 4)),
        *((2, step) for step in (3, 4)),
    ]
    assert list(entries[4].positions) == [10, 11]
    assert [list(map(list, e.skipped_windows)) for e in entries] == [[]] * 4 + [[[4, 10]], []]


def test_what_was_passed_over_is_reported(make_job):
    job = make_job(**{"data.filters.max_pictures": 1})
    job.train(4)
    skipped = [skip for entry in job.entries() for skip in entry.skipped]
    assert {tuple(skip[:3]) for skip in skipped} == {
        ("documents", "web_documents", "too_many_pictures")
    }


def test_a_loss_that_is_nan_is_distinguished_from_nothing_predicted(make_job):
    job = make_job()
    batch = next(iter(job.loader))
    job.module.last_document_losses = torch.full((2,), math.nan), torch.tensor([3.0, 0.0])
    job.trainer.global_step = 1
    job.recorder.on_train_batch_end(job.trainer, job.module, None, batch, 0)
    (entry,) = job.entries()
    assert math.isnan(entry.losses[0])
    assert entry.losses[1] is None


def test_a_module_that_leaves_no_losses_is_written_without(make_job, make_stream):
    job = make_job()
    job.module = SimpleNamespace()
    batch = next(iter(job.loader))
    job.trainer.global_step = 1
    job.recorder.on_train_batch_end(job.trainer, job.module, None, batch, 0)
    assert list(job.entries()[0].losses) == []

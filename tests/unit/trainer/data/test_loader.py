import itertools

import fsspec
import pytest
import torch

from stabilizer.errors import ConfigurationError
from trainer.data import StaleIteratorError, StreamLoader
from trainer.data.documents import BadDocumentError
from trainer.data.sources import ParquetSource

EPOCH = 24


def positions(loader, count):
    """Positions of the next batches, over the ends of epochs."""
    epochs = itertools.chain.from_iterable(iter(lambda: iter(loader), None))
    return [batch["positions"] for batch in itertools.islice(epochs, count)]


@pytest.fixture
def make_loader(make_stream):
    def make(**options):
        given = {"batch_size": 4, "epoch_samples": EPOCH} | options
        return StreamLoader(make_stream(), **given)

    return make


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_samples_in_order_over_the_ends_of_epochs(make_loader, workers):
    loader = make_loader(workers=workers)
    flat = [p for batch in positions(loader, 14) for p in batch]
    assert flat == list(range(56))
    assert loader.samples == 56


def test_batches_are_the_same_whatever_the_number_of_workers(make_loader):
    def everything(workers):
        loader = make_loader(workers=workers)
        return [(b["sample_ids"], b["input_ids"].tolist(), b["source"]) for b in loader]

    assert everything(0) == everything(1) == everything(2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("consumed", [0, 1, 5, 6, 7], ids=lambda n: f"after {n} batches")
def test_a_restored_loader_yields_the_very_next_sample(make_loader, workers, consumed):
    loader = make_loader(workers=workers)
    positions(loader, consumed)
    fresh = make_loader(workers=workers)
    fresh.load_state_dict(loader.state_dict())
    assert positions(fresh, 8) == [
        list(range(4 * k, 4 * k + 4)) for k in range(consumed, consumed + 8)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_counts_batches_handed_out_and_not_those_prefetched(make_loader, workers):
    loader = make_loader(workers=workers)
    iterator = iter(loader)
    assert loader.state_dict() == {"samples": 0}
    next(iterator)
    assert loader.state_dict() == {"samples": 4}
    next(iterator)
    assert loader.state_dict() == {"samples": 8}


@pytest.mark.parametrize("workers", [0, 2])
def test_restored_twice_it_goes_back_twice(make_loader, workers):
    loader = make_loader(workers=workers)
    positions(loader, 2)
    state = loader.state_dict()
    first = positions(loader, 3)
    for _ in range(2):
        loader.load_state_dict(state)
        assert positions(loader, 3) == first


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_are_left_out(make_loader, workers):
    loader = make_loader(workers=workers)
    positions(loader, 1)
    loader.skip_samples(10)
    assert positions(loader, 2) == [[14, 15, 16, 17], [18, 19, 20, 21]]
    assert loader.samples == 22


def test_a_skip_over_the_end_of_an_epoch_lands_in_the_next_one(make_loader):
    loader = make_loader()
    loader.skip_samples(EPOCH + 4)
    assert [batch["positions"][0] for batch in loader] == list(range(EPOCH + 4, 2 * EPOCH, 4))


def test_an_epoch_that_was_entered_askew_ends_with_a_whole_batch(make_loader):
    loader = make_loader()
    loader.skip_samples(22)
    assert [batch["positions"] for batch in loader] == [[22, 23, 24, 25]]
    assert next(iter(loader))["positions"] == [26, 27, 28, 29]


def test_an_iteration_that_was_given_up_continues_there(make_loader):
    loader = make_loader()
    next(iter(loader))
    assert next(iter(loader))["positions"] == [4, 5, 6, 7]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "move",
    [
        lambda loader: loader.load_state_dict({"samples": 0}),
        lambda loader: loader.skip_samples(4),
        iter,
    ],
    ids=["restored", "skipped", "iterated anew"],
)
def test_a_stale_iterator_hands_out_nothing(make_loader, workers, move):
    loader = make_loader(workers=workers)
    iterator = iter(loader)
    next(iterator)
    move(loader)
    before = loader.samples
    with pytest.raises(StaleIteratorError):
        next(iterator)
    assert loader.samples == before


def test_an_iterator_that_never_began_is_stale_too(make_loader):
    loader = make_loader()
    iterator = iter(loader)
    loader.skip_samples(4)
    with pytest.raises(StaleIteratorError):
        next(iterator)


def test_two_ranks_read_together_what_one_rank_reads_alone(make_loader):
    alone = make_loader(batch_size=8)
    ranks = [make_loader(batch_size=4, rank=rank, world_size=2, workers=rank) for rank in (0, 1)]
    together = [a + b for a, b in zip(*(positions(loader, 5) for loader in ranks), strict=True)]
    assert together == positions(alone, 5)
    assert {loader.samples for loader in (alone, *ranks)} == {40}


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_restore_and_skip_to_the_same_place(make_loader, workers):
    def make(rank):
        return make_loader(batch_size=2, rank=rank, world_size=2, workers=workers)

    trained = make(0)
    positions(trained, 2)
    ranks = [make(rank) for rank in (0, 1)]
    for loader in ranks:
        loader.load_state_dict(trained.state_dict())
    assert [positions(loader, 1) for loader in ranks] == [[[8, 9]], [[10, 11]]]
    for loader in ranks:
        loader.load_state_dict(trained.state_dict())
        loader.skip_samples(4)
    assert [positions(loader, 1) for loader in ranks] == [[[12, 13]], [[14, 15]]]


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_never_touches_the_random_state_of_the_job(make_loader, workers):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    positions(make_loader(workers=workers), 3)
    assert torch.equal(before, torch.get_rng_state())


def test_an_epoch_is_a_pass_over_the_corpus_by_default(make_loader):
    loader = make_loader(epoch_samples=0)
    assert len(loader) == 45 // 4
    assert len(list(loader)) == len(loader)


def test_a_corpus_smaller_than_a_batch_is_an_epoch_of_one_batch(make_loader):
    assert len(make_loader(epoch_samples=0, batch_size=64)) == 1


def test_a_pass_ends_with_a_whole_optimizer_step(make_loader):
    loader = make_loader(epoch_samples=0, accumulate=3)
    assert len(loader) == len(list(loader)) == 45 // (4 * 3) * 3
    assert len(make_loader(epoch_samples=0, accumulate=3, world_size=2)) == 3
    assert len(make_loader(epoch_samples=0, accumulate=32)) == 32  # one step, longer than a pass
    assert len(make_loader(accumulate=4)) == EPOCH // 4  # what is asked for stays


@pytest.mark.parametrize("state", [{}, {"samples": -1}, {"samples": "4"}, {"epoch": 3}])
def test_a_foreign_state_is_refused_and_moves_nothing(make_loader, state):
    loader = make_loader()
    positions(loader, 1)
    with pytest.raises(ValueError, match="samples"):
        loader.load_state_dict(state)
    assert loader.samples == 4


def test_a_skip_backwards_is_refused(make_loader):
    with pytest.raises(ValueError, match="-1"):
        make_loader().skip_samples(-1)


def test_bad_documents_of_handed_out_batches_are_counted(make_loader, monkeypatch):
    document = ParquetSource.document

    def every_third_is_bad(self, index):
        if index % 3 == 0:
            raise BadDocumentError("web", "is bad")
        return document(self, index)

    monkeypatch.setattr(ParquetSource, "document", every_third_is_bad)
    loader = make_loader()
    for batch in loader:
        assert len(batch["sample_ids"]) == 4
    assert loader.passed_over > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_documents_in_a_row_are_reported_alike_with_workers(
    make_loader, monkeypatch, workers
):
    def is_bad(self, index):
        raise BadDocumentError("web", f"{index} is bad")

    monkeypatch.setattr(ParquetSource, "document", is_bad)
    loader = make_loader(workers=workers)
    with pytest.raises(ConfigurationError) as caught:
        next(iter(loader))
    assert caught.value.message.startswith("data.max_bad_in_a_row: 17 unusable documents in a row")
    assert "\n" not in caught.value.message
    assert loader.samples == 0


def test_a_batch_moves_the_stream_by_the_samples_of_all_ranks(make_loader):
    loader = make_loader(rank=1, world_size=3)
    next(iter(loader))
    assert loader.samples == loader.samples_per_batch == 12
    assert loader.batch_size == 4


def test_skipped_windows_are_remembered(make_loader):
    loader = make_loader()
    loader.skip_samples(0)
    assert loader.skipped_windows == []
    positions(loader, 2)
    loader.skip_samples(8)
    positions(loader, 1)
    loader.skip_samples(4)
    assert loader.skipped_windows == [(8, 16), (20, 24)]


PACKED = {
    "data.packing": {"documents": 8, "rows": 3},
    "data.sequence_length": 96,
    "data.max_images": 8,
}


@pytest.fixture
def make_packed_loader(make_stream):
    def make(**options):
        given = {"batch_size": 2, "epoch_samples": EPOCH} | options
        return StreamLoader(make_stream(**PACKED), **given)

    return make


def contents(loader, count):
    epochs = itertools.chain.from_iterable(iter(lambda: iter(loader), None))
    return [
        (batch["positions"], batch["sample_ids"], batch["input_ids"].tolist())
        for batch in itertools.islice(epochs, count)
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("consumed", [1, 4, 13], ids=lambda n: f"after {n} batches")
def test_packed_sequences_resume_at_the_very_next_one(make_packed_loader, workers, consumed):
    loader = make_packed_loader(workers=workers)
    unbroken = contents(make_packed_loader(), consumed + 5)
    assert contents(loader, consumed) == unbroken[:consumed]
    fresh = make_packed_loader(workers=workers)
    fresh.load_state_dict(loader.state_dict())
    assert contents(fresh, 5) == unbroken[consumed:]


def test_two_ranks_read_together_the_packed_sequences_of_one(make_packed_loader):
    alone = make_packed_loader(batch_size=4)
    ranks = [make_packed_loader(rank=rank, world_size=2, workers=rank) for rank in (0, 1)]
    parts = zip(*(contents(loader, 6) for loader in ranks), strict=True)
    together = [tuple(a + b for a, b in zip(*pair, strict=True)) for pair in parts]
    assert together == contents(alone, 6)


def test_what_workers_pass_over_is_counted_as_without_them(make_stream):
    limits = {"data.filters.max_pictures": 2, **PACKED}
    found = []
    for workers in (0, 2):
        loader = StreamLoader(
            make_stream(**limits), batch_size=3, epoch_samples=24, workers=workers
        )
        list(loader)
        found.append(loader.health)
    assert found[0] == found[1]
    assert any(metric.labels.get("reason") == "too_many_pictures" for metric in found[0])


def test_workers_read_from_a_file_system_that_is_not_local(corpus, make_stream):
    memory = fsspec.filesystem("memory")
    for path in corpus.rglob("*.parquet"):
        memory.pipe(f"/corpus/{path.relative_to(corpus)}", path.read_bytes())
    sources = {
        name: {"weight": weight, "path": f"memory://corpus/{name}"}
        for name, weight in (("web_documents", 3), ("image_text_pairs", 1))
    }
    here, there = make_stream(), make_stream(**{"data.sources": sources})
    batches = [
        contents(StreamLoader(stream, batch_size=4, epoch_samples=16, workers=workers), 4)
        for stream, workers in ((here, 0), (there, 2))
    ]
    assert batches[0] == batches[1]

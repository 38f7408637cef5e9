"""Loaders followed and gone back in, without any training around them."""

from __future__ import annotations

import random

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
)

from stabilizer.agent.control import loaders as module
from stabilizer.agent.control.loaders import TrackedLoader, count_samples
from stabilizer.agent.control.torch_state import capture_random_state, restore_random_state
from stabilizer.errors import RestoreError


class Numbers(Dataset):
    def __init__(self, size=20, noise=False):
        self.size, self.noise = size, noise

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        extra = random.random() + torch.rand(()).item() if self.noise else 0.0
        return torch.tensor(index + extra)


class Drawn(IterableDataset):
    """Draws what it yields from the global random states of the main process."""

    def __init__(self, length=None, noise=True):
        self.length, self.noise = length, noise

    def __iter__(self):
        number = 0
        while self.length is None or number < self.length:
            yield torch.tensor(number + (random.random() if self.noise else 0.0))
            number += 1


class Stream:
    def __init__(self, length=None, batch=2):
        self.samples, self.length, self.batch = 0, length, batch

    def state_dict(self):
        return {"samples": self.samples}

    def load_state_dict(self, state):
        self.samples = state["samples"]

    def skip_samples(self, n):
        self.samples += n

    def __iter__(self):
        while self.length is None or self.samples < self.length:
            self.samples += self.batch
            yield list(range(self.samples - self.batch, self.samples))


def take(iterator, count):
    """Batches, with training drawing random numbers in between."""
    batches = []
    for _ in range(count):
        batch = next(iterator)
        batches.append(batch.tolist() if isinstance(batch, torch.Tensor) else batch)
        torch.rand(1)
        random.random()
    return batches


def weighted(size):
    return WeightedRandomSampler([1.0] * size, size)


MAKERS = {
    "in order": lambda: DataLoader(Numbers(), batch_size=3),
    "shuffled": lambda: DataLoader(Numbers(noise=True), batch_size=3, shuffle=True),
    "own generator": lambda: DataLoader(
        Numbers(), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "replacement": lambda: DataLoader(
        Numbers(80),
        batch_size=3,
        sampler=RandomSampler(Numbers(80), replacement=True, generator=torch.Generator()),
    ),
    "weighted": lambda: DataLoader(Numbers(), batch_size=3, sampler=weighted(20)),
    "batch sampler": lambda: DataLoader(
        Numbers(), batch_sampler=BatchSampler(RandomSampler(Numbers()), 3, drop_last=True)
    ),
    "no batches": lambda: DataLoader(Numbers(noise=True), batch_size=None, shuffle=True),
    "distributed": lambda: DataLoader(
        Numbers(60), batch_size=3, sampler=DistributedSampler(Numbers(60), 2, 1, shuffle=True)
    ),
    "workers": lambda: DataLoader(Numbers(noise=True), batch_size=3, shuffle=True, num_workers=2),
    "iterable": lambda: DataLoader(Drawn(), batch_size=3),
    "iterable workers": lambda: DataLoader(Drawn(), batch_size=3, num_workers=2),
    "list": lambda: [torch.tensor([number]) for number in range(9)],
    "stream": Stream,
}


@pytest.mark.parametrize("used", [0, 1, 3])
@pytest.mark.parametrize("name", MAKERS)
def test_the_same_data_comes_again(name, used):
    torch.manual_seed(1)
    random.seed(1)
    tracked = TrackedLoader(MAKERS[name]())
    iterator = iter(tracked)
    take(iterator, used)
    position, state = tracked.position(), capture_random_state()
    expected = take(iterator, 3)
    for _ in range(2):
        again = tracked.restore(position)
        restore_random_state(state)
        assert tracked.samples() == position.samples
        assert take(again, 3) == expected
    tracked.close()


def test_persistent_workers_continue_over_epochs():
    torch.manual_seed(1)
    loader = DataLoader(
        Numbers(noise=True), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True
    )
    tracked = TrackedLoader(loader)
    take(iter(tracked), 3)  # an epoch that is given up in the middle
    take(iter(tracked), 5)
    iterator = iter(tracked)
    take(iterator, 2)
    position, state = tracked.position(), capture_random_state()
    expected = take(iterator, 3) + take(iter(tracked), 5)
    again = tracked.restore(position)
    restore_random_state(state)
    assert take(again, 3) + take(iter(tracked), 5) == expected
    tracked.close()


def test_the_epoch_of_a_sampler_goes_back():
    loader = MAKERS["distributed"]()
    tracked = TrackedLoader(loader, world_size=2)
    loader.sampler.set_epoch(1)
    iterator = iter(tracked)
    take(iterator, 1)
    position = tracked.position()
    assert position.samples == 6
    expected = take(iterator, 2)
    loader.sampler.set_epoch(2)
    take(iter(tracked), 1)
    assert take(tracked.restore(position), 2) == expected
    assert loader.sampler.epoch == 1


def test_unused_batches_are_distinguished_from_used_ones():
    tracked = TrackedLoader(Stream())
    tracked.lag = 2
    iterator = iter(tracked)
    assert tracked.samples(unused=1) == 0
    take(iterator, 4)
    assert [tracked.samples(n) for n in (0, 1, 2, 9)] == [8, 6, 4, 4]
    assert tracked.position(unused=1).state == {"samples": 6}
    again = tracked.restore(tracked.position())
    assert tracked.samples(unused=1) == 6
    assert take(again, 1) == [[8, 9]]


def test_a_stream_skips_and_restores_after_the_skip():
    tracked = TrackedLoader(Stream())
    iterator = iter(tracked)
    take(iterator, 2)
    start = tracked.position()
    again = tracked.restore(start, skip_samples=10)
    assert tracked.samples() == 14
    assert take(again, 1) == [[14, 15]]
    behind = tracked.position()
    assert take(tracked.restore(behind), 1) == [[16, 17]]
    assert take(tracked.restore(start), 1) == [[4, 5]]
    assert tracked.samples_per_batch == 2


def test_a_stream_without_length_ends_where_it_ends():
    tracked = TrackedLoader(Stream(length=8))
    iterator = iter(tracked)
    take(iterator, 1)
    again = tracked.restore(tracked.position(), skip_samples=4)
    assert take(again, 1) == [[6, 7]]
    with pytest.raises(StopIteration):
        next(again)


def test_a_stream_with_epochs_continues_past_them_after_a_skip():
    class Epochs(Stream):
        def __len__(self):
            return 4

        def __iter__(self):
            end = (self.samples // 8 + 1) * 8
            for batch in super().__iter__():
                yield batch
                if self.samples >= end:
                    return

    tracked = TrackedLoader(Epochs())
    iterator = iter(tracked)
    take(iterator, 1)
    position = tracked.position()
    assert take(tracked.restore(position, skip_samples=2), 4) == [[4, 5], [6, 7], [8, 9], [10, 11]]
    plain = tracked.restore(position)
    assert take(plain, 3) == [[2, 3], [4, 5], [6, 7]]
    with pytest.raises(StopIteration):  # without a skip epochs end where they end
        next(plain)


def test_the_declared_batch_size_of_a_loader_wins():
    stream = Stream()
    stream.samples_per_batch = 16
    assert TrackedLoader(stream).samples_per_batch == 16
    assert TrackedLoader(Stream()).samples_per_batch == 1


def test_a_stateful_loader_that_cannot_skip():
    class Plain:
        def __init__(self):
            self.at = 0

        def state_dict(self):
            return {"at": self.at}

        def load_state_dict(self, state):
            self.at = state["at"]

        def __iter__(self):
            while True:
                self.at += 1
                yield torch.tensor([self.at, self.at])

    tracked = TrackedLoader(Plain())
    take(iter(tracked), 2)
    assert not tracked.is_skippable
    assert tracked.samples() == 4
    position = tracked.position()
    assert take(tracked.restore(position), 1) == [[3, 3]]
    with pytest.raises(RestoreError, match="cannot skip"):
        tracked.restore(position, skip_samples=1)


def test_a_length_exists_only_if_the_loader_has_one():
    assert len(TrackedLoader(DataLoader(Numbers(), batch_size=3))) == 7
    with pytest.raises(TypeError):
        len(TrackedLoader(DataLoader(Drawn(), batch_size=3)))


def test_an_iterator_cannot_be_rewound():
    tracked = TrackedLoader(iter([1, 2]))
    assert tracked.unsupported is None
    iter(tracked)
    assert "only once" in tracked.unsupported


def test_workers_out_of_order_cannot_be_rewound():
    loader = DataLoader(Numbers(), num_workers=2, in_order=False)
    assert "no fixed order" in TrackedLoader(loader).unsupported
    assert TrackedLoader(DataLoader(Numbers(), num_workers=1, in_order=False)).unsupported is None


def test_too_long_a_trail_cannot_be_rewound(monkeypatch):
    monkeypatch.setattr(module, "_MAX_TRAIL_BYTES", 30_000)
    tracked = TrackedLoader(DataLoader(Drawn(), batch_size=2))
    iterator = iter(tracked)
    take(iterator, 2)
    assert tracked.unsupported is None
    take(iterator, 3)
    assert "too many batches" in tracked.unsupported
    quiet = TrackedLoader(DataLoader(Drawn(noise=False), batch_size=2))
    take(iter(quiet), 50)
    assert quiet.unsupported is None


def test_data_that_has_become_shorter_is_noticed():
    data = Numbers(20)
    tracked = TrackedLoader(DataLoader(data, batch_size=3))
    take(iter(tracked), 6)
    position = tracked.position()
    data.size = 4
    with pytest.raises(RestoreError, match="ended early"):
        tracked.restore(position)


def test_a_sampler_with_a_memory_is_noticed():
    class Counting:
        rounds = 0

        def __iter__(self):
            self.rounds += 1
            return iter([self.rounds, 2, 3, 4])

        def __len__(self):
            return 4

    tracked = TrackedLoader(DataLoader(Numbers(), batch_size=2, sampler=Counting()))
    take(iter(tracked), 1)
    with pytest.raises(RestoreError, match="other indices"):
        tracked.restore(tracked.position())


def test_after_close_there_is_nothing_more():
    tracked = TrackedLoader(DataLoader(Numbers(), batch_size=3, num_workers=1))
    iterator = iter(tracked)
    take(iterator, 1)
    tracked.close()
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.ones(3, 2), 3),
        (torch.tensor(1.0), 1),
        ({"text": ["a"], "x": [torch.ones(4)]}, 4),
        ((None, (torch.ones(5), 1)), 5),
        (["a", "b"], None),
        (3, None),
    ],
)
def test_samples_are_counted(batch, count):
    assert count_samples(batch) == count


def test_batches_without_tensors_count_by_the_loader():
    loader = DataLoader(["a", "b", "c", "d"], batch_size=2)
    tracked = TrackedLoader(loader)
    next(iter(tracked))
    assert tracked.samples() == 2
    listed = TrackedLoader([["a"], ["b"]])
    next(iter(listed))
    assert listed.samples() == 1

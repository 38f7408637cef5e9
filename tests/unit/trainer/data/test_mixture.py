from collections import Counter

import pytest

from stabilizer.errors import ConfigurationError
from trainer.data.mixture import MixtureOrder

SIZES = {"web": [12], "pairs": [5]}
WEIGHTS = {"web": 3, "pairs": 1}


def test_sources_are_mixed_exactly():
    order = MixtureOrder(SIZES, WEIGHTS, seed=0)
    for period in range(20):
        names = Counter(order.locate(period * 4 + i)[0] for i in range(4))
        assert names == {"web": 3, "pairs": 1}


def test_the_order_inside_a_period_is_not_always_the_same():
    order = MixtureOrder(SIZES, WEIGHTS, seed=0)
    assert len({tuple(order.locate(p * 4 + i)[0] for i in range(4)) for p in range(20)}) > 1


def test_every_pass_reads_every_document_once_in_an_order_of_its_own():
    order = MixtureOrder({"web": [12]}, {"web": 1}, seed=0)
    passes = [[order.locate(n * 12 + i)[1] for i in range(12)] for n in range(3)]
    assert all(sorted(numbers) == list(range(12)) for numbers in passes)
    assert len({tuple(numbers) for numbers in passes}) == 3


def test_a_small_source_repeats_within_a_pass_of_a_large_one():
    order = MixtureOrder(SIZES, {"web": 1, "pairs": 1}, seed=0)
    pairs = [n for name, n in map(order.locate, range(20)) if name == "pairs"]
    assert sorted(pairs[:5]) == sorted(pairs[5:]) == list(range(5))


def test_seeds_name_different_orders():
    found = {
        tuple(MixtureOrder(SIZES, WEIGHTS, seed).locate(i) for i in range(12)) for seed in range(8)
    }
    assert len(found) == 8


def test_a_weight_without_a_source_is_refused():
    with pytest.raises(ConfigurationError, match="'audio' is not in the corpus"):
        MixtureOrder(SIZES, {"audio": 1}, seed=0)

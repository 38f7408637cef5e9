from collections import Counter

import pytest

from stabilizer.errors import ConfigurationError
from trainer.data.order import MixtureOrder

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


BLOCKS = [7, 0, 30, 12, 5, 9, 21, 16]


@pytest.mark.parametrize("together", [1, 3, 8, 100])
def test_a_pass_in_blocks_reads_every_document_once(together):
    order = MixtureOrder({"web": BLOCKS}, {"web": 1}, 0, shuffle_blocks=together)
    passes = [[order.locate(n * 100 + i).number for i in range(100)] for n in range(3)]
    assert all(sorted(numbers) == list(range(100)) for numbers in passes)
    assert len({tuple(numbers) for numbers in passes}) == 3


def test_only_blocks_that_are_shuffled_together_are_read_side_by_side():
    blocks = [10] * 20
    order = MixtureOrder({"web": blocks}, {"web": 1}, 0, shuffle_blocks=4)
    numbers = [order.locate(i).number for i in range(200)]
    chunks = [{number // 10 for number in numbers[i : i + 40]} for i in range(0, 200, 40)]
    assert [len(chunk) for chunk in chunks] == [4] * 5
    assert sorted(set().union(*chunks)) == list(range(20))
    assert chunks[0] != {0, 1, 2, 3}
    first = numbers[:40]
    assert [number // 10 for number in first] != sorted(number // 10 for number in first)


def test_an_order_in_blocks_is_the_same_asked_from_behind():
    orders = [MixtureOrder({"web": BLOCKS}, {"web": 1}, 5, shuffle_blocks=2) for _ in range(2)]
    forwards = [orders[0].locate(i) for i in range(900)]
    assert [orders[1].locate(i) for i in reversed(range(900))][::-1] == forwards


@pytest.mark.parametrize("together", [0, 2])
def test_substitutes_are_others_of_the_same_source_and_always_the_same(together):
    blocks = {"web": BLOCKS, "pairs": [40]}
    order = MixtureOrder(blocks, {"web": 1, "pairs": 1}, 0, shuffle_blocks=together)
    for position in range(20):
        drawn = [order.substitute(position, attempt) for attempt in range(1, 30)]
        assert {place.source for place in drawn} == {order.locate(position).source}
        assert len(set(drawn)) > 5
        assert drawn == [order.substitute(position, attempt) for attempt in range(1, 30)]


def test_substitutes_lie_among_the_blocks_that_are_read_anyway():
    order = MixtureOrder({"web": [10] * 20}, {"web": 1}, 0, shuffle_blocks=4)
    near = {order.locate(i).number // 10 for i in range(40)}
    drawn = {order.substitute(i, n).number // 10 for i in range(40) for n in range(1, 5)}
    assert drawn == near
    late = {order.substitute(7, n).number // 10 for n in range(5, 300)}
    assert late == set(range(20))  # all that is near may be damaged

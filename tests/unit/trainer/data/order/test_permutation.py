from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order import mix, permute


@given(size=st.integers(1, 300), key=st.integers(0, 2**64 - 1))
def test_every_item_comes_exactly_once(size, key):
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_keys_name_different_orders():
    orders = {tuple(permute(i, 50, key) for i in range(50)) for key in range(20)}
    assert len(orders) == 20


def test_an_order_is_mixed_well():
    """Neighbours do not stay neighbours: the mean distance is near the third of a random order."""
    order = [permute(i, 3000, 7) for i in range(3000)]
    mean = sum(abs(a - b) for a, b in pairwise(order)) / 2999
    assert 900 < mean < 1100


def test_an_order_of_a_billion_items_costs_nothing():
    assert 0 <= permute(10**9 - 1, 10**9, 3) < 10**9


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_is_refused(index):
    with pytest.raises(IndexError):
        permute(index, 5, 0)


def test_orders_are_the_same_on_every_machine_and_in_every_version():
    assert mix(1, 2, 3) == 0x7C961D2BEC0CBCBA
    assert [permute(i, 10, 5) for i in range(10)] == [8, 1, 7, 6, 3, 9, 4, 0, 5, 2]

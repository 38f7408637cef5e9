import math

import numpy as np
import pytest
import torch

from stabilizer.agent.probes.record import (
    AttentionSummaries,
    HostCopy,
    Mean,
    PendingFrames,
    RootMeanSquare,
    Slot,
    StepRecord,
)
from stabilizer.protocol.series import Catalog


def _frames(catalogs, record):
    return PendingFrames(7, 12.5, catalogs, record.readings(), HostCopy(record.parts))


def test_parts_come_back_in_their_order_and_shape():
    parts = [torch.tensor(1.0), torch.tensor([2.0, 3.0]), torch.tensor([4.0])]
    assert [part.tolist() for part in HostCopy(parts).wait()] == [[1.0], [2.0, 3.0], [4.0]]
    assert HostCopy([]).wait() == []


def test_the_copy_does_not_follow_later_changes():
    part = torch.tensor([1.0])
    copy = HostCopy([part])
    part.fill_(9.0)
    assert copy.wait()[0].tolist() == [1.0]


def test_frames_of_the_catalogs_that_have_a_value():
    first, second, third = Catalog.of(["a", "b"]), Catalog.of(["c"]), Catalog.of(["d"])
    record = StepRecord()
    record.log(Slot(0, 1), 2.0)
    record.log(Slot(2, 0), torch.tensor(4.0))
    blocks = _frames((first, second, third), record).blocks()

    assert [catalog for catalog, _ in blocks] == [first, third]
    (_, sparse), (_, full) = blocks
    assert sparse.catalog == first.id
    assert sparse.steps.tolist() == [7]
    assert sparse.times.tolist() == [12.5]
    assert sparse.values.dtype == np.float32
    assert sparse.present is not None
    assert sparse.present.tolist() == [[False, True]]
    assert sparse.values.tolist() == [[0.0, 2.0]]
    assert full.present is None
    assert full.values.tolist() == [[4.0]]


def test_reading_twice_gives_the_same():
    catalog = Catalog.of(["a"])
    record = StepRecord()
    record.log(Slot(0, 0), torch.tensor(4.0))
    frames = _frames((catalog,), record)
    assert frames.blocks()[0][1].values.tolist() == frames.blocks()[0][1].values.tolist() == [[4.0]]


def test_nothing_measured_gives_no_frame():
    assert _frames((Catalog.of(["a"]), None), StepRecord()).blocks() == []


def test_nan_inf_and_too_large_numbers_are_data():
    catalog = Catalog.of(["a", "b", "c"])
    record = StepRecord()
    for column, value in enumerate((math.nan, -math.inf, 1e300)):
        record.log(Slot(0, column), value)
    ((_, block),) = _frames((catalog,), record).blocks()
    assert block.present is None
    assert math.isnan(block.values[0, 0])
    assert block.values[0, 1:].tolist() == [-math.inf, math.inf]


def test_what_the_job_gives_goes_before_what_was_measured():
    record = StepRecord()
    record.log(Slot(0, 0), 1.0)
    record.add_value(Slot(0, 0), torch.tensor(5.0))
    ((_, block),) = _frames((Catalog.of(["a"]),), record).blocks()
    assert block.values.tolist() == [[1.0]]


def test_a_logged_tensor_is_taken_as_it_is_now():
    total = torch.tensor(1.0)
    record = StepRecord()
    record.log(Slot(0, 0), total)
    total += 10
    record.log(Slot(0, 0), total.double()[None, None])
    total += 10
    (reading,) = record.readings()
    assert reading.read(HostCopy(record.parts).wait()) == [(Slot(0, 0), 6.0)]


@pytest.mark.parametrize("value", [torch.ones(2), torch.ones(0), torch.empty((), device="meta")])
def test_what_is_not_one_number_is_refused(value):
    with pytest.raises(ValueError, match="one element"):
        StepRecord().log(Slot(0, 0), value)


def test_integers_and_numpy_numbers_are_numbers():
    record = StepRecord()
    record.log(Slot(0, 0), torch.tensor(3))
    record.log(Slot(0, 0), np.float32(5))
    record.log(Slot(0, 0), True)
    assert record.readings() == [Mean(Slot(0, 0), [0], [5.0, 1.0])]
    assert record.parts[0].item() == 3.0


A, B, C = Slot(1, 0), Slot(1, 1), Slot(1, 2)


def _parts(*parts):
    return [np.array(part, np.float64) for part in parts]


def test_means_over_microbatches():
    reading = Mean(A, parts=(0, 2), numbers=(6.0,))
    assert reading.read(_parts([1.0], [50.0], [2.0])) == [(A, 3.0)]
    ((_, value),) = Mean(A, parts=(0, 1)).read(_parts([1.0], [math.nan]))
    assert math.isnan(value)


def test_root_mean_square_is_over_all_values():
    values = [np.array([3.0, 4.0]), np.array([1.0, 2.0, 2.0])]
    norms = [[float(np.linalg.norm(v))] for v in values]
    expected = math.sqrt(np.concatenate(values).__pow__(2).mean())
    assert RootMeanSquare(A, (0, 1), (2, 3)).read(_parts(*norms)) == [(A, pytest.approx(expected))]
    ((_, value),) = RootMeanSquare(A, (0,), (2,)).read(_parts([math.inf]))
    assert value == math.inf
    ((_, value),) = RootMeanSquare(A, (0, 1), (2, 2)).read(_parts([math.inf], [math.nan]))
    assert math.isnan(value)


def test_attentions_weigh_microbatches_by_their_queries():
    first = [1.0, 2.0, 2, 4, 7.5, 12]  # heads: 0.5 and 0.5; 2 and 4 queries
    second = [0.0, 1.0, 2, 1, -1.0, 9]  # heads: 0.0 and 1.0
    found = dict(AttentionSummaries(A, B, C, (0, 1)).read(_parts(first, second)))
    assert found == {A: 0.25, B: pytest.approx((0.25 + 0.6) / 2), C: 7.5}


def test_attentions_without_a_query_that_counts():
    reading = AttentionSummaries(A, B, C, (0,))
    assert reading.read(_parts([0, 0, 0, 0, -math.inf, 0])) == []
    assert reading.read(_parts([0, 0, 0, 0, 3.0, 4])) == [(C, 3.0)]
    half = dict(
        AttentionSummaries(A, B, C, (0, 1)).read(
            _parts([0, 0, 0, 0, -math.inf, 0], [1, 0, 2, 0, 5.0, 4])
        )
    )
    assert half == {A: 0.5, B: 0.5, C: 5.0}


def test_attentions_show_nan_in_whatever_microbatch():
    clean, broken = [1.0, 2.0, 2, 4, 7.5, 12], [1.0, math.nan, 2, 4, math.nan, 12]
    for order in ((clean, broken), (broken, clean)):
        found = dict(AttentionSummaries(A, B, C, (0, 1)).read(_parts(*order)))
        assert all(math.isnan(value) for value in found.values())
        assert len(found) == 3
    infinite = [1.0, 2.0, 2, 4, math.inf, 12], [1.0, 2.0, 2, 4, -math.inf, 12]
    found = dict(AttentionSummaries(A, B, C, (0, 1)).read(_parts(*infinite)))
    assert found[C] == math.inf

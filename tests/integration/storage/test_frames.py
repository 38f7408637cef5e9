import numpy as np
import pytest
from sqlalchemy import update

from stabilizer.collector.storage.models import FrameRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.errors import StorageError

PAYLOADS = np.array(
    [0x7FC00000, 0x7FC12345, 0xFFC00001, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001],
    np.uint32,
)
"""NaN with three payloads, both infinities, minus zero and the smallest denormal."""


@pytest.fixture
def read(services, run_id, make):
    def blocks(**given):
        with services.database.reading() as session:
            frames = Repositories(session).frames
            steps = given.get("steps", (0, None))
            return list(frames.read(run_id, make.catalog.id, given.get("attempt"), steps))

    return blocks


def test_every_bit_comes_back(services, run_id, make, read):
    values = np.stack([PAYLOADS.view(np.float32), PAYLOADS[::-1].view(np.float32)], axis=1)
    block = make.block(range(1, 8), values=values)
    services.ingest.accept(run_id, make.batch(0, blocks=[block]))
    ((attempt, stored),) = read()
    assert attempt == 1
    assert stored.values.tobytes() == values.tobytes()
    assert stored.steps.tolist() == list(range(1, 8))
    assert stored.times.tobytes() == block.times.tobytes()
    assert stored.present is None


def test_absent_is_not_nan(services, run_id, make, read):
    present = np.array([[True, False], [False, True], [False, False]])
    block = make.block([1, 2, 3], values=np.full((3, 2), np.nan), present=present)
    services.ingest.accept(run_id, make.batch(0, blocks=[block]))
    ((_, stored),) = read()
    assert stored.present.tolist() == present.tolist()


def test_ranges_leave_batches_out(services, run_id, make, read):
    for sequence in range(4):
        first = 10 * sequence + 1
        services.ingest.accept(run_id, make.batch(sequence, range(first, first + 10)))
    ((_, found),) = read(steps=(15, 25))
    assert found.steps.tolist() == list(range(11, 31))
    assert read(attempt=2) == []


def test_batches_of_one_attempt_come_as_one_block_with_their_presence(services, run_id, make, read):
    services.ingest.accept(run_id, make.batch(0, [1]))
    sparse = make.block([2, 3], present=np.array([[True, False], [False, True]]))
    services.ingest.accept(run_id, make.batch(1, blocks=[sparse]))
    start = make.rollback_start(1)
    services.ingest.accept(run_id, make.batch(0, [2], attempt=2, attempt_start=start))
    (first, merged), (second, alone) = read()
    assert (first, second) == (1, 2)
    assert merged.steps.tolist() == [1, 2, 3]
    assert merged.present.tolist() == [[True, True], [True, False], [False, True]]
    assert merged.values.shape == (3, 2)
    assert alone.present is None


def test_blocks_are_not_put_together_without_end(services, run_id, make, read, monkeypatch):
    monkeypatch.setattr("stabilizer.collector.storage.repositories.blocks.MERGE_BYTES", 100)
    for sequence in range(40):  # 8 bytes of values each
        services.ingest.accept(run_id, make.batch(sequence, [sequence + 1]))
    blocks = [block for _, block in read()]
    assert [len(block) for block in blocks] == [13, 13, 13, 1]
    assert [step for block in blocks for step in block.steps] == list(range(1, 41))


def test_measured_steps_are_those_of_the_series_asked_for(services, run_id, make):
    sparse = make.block([1, 2, 3], present=np.array([[True, False], [False, True], [False, False]]))
    services.ingest.accept(run_id, make.batch(0, blocks=[sparse, make.block([9])]))
    with services.database.reading() as session:
        frames = Repositories(session).frames

        def measured(*slots):
            found = frames.measured_steps(run_id, make.catalog.id, slots)
            return [step for _, steps in found for step in steps.tolist()]

        assert measured(0) == [1, 9]
        assert measured(0, 1) == [1, 2, 9]


def test_the_newest_come_first_over_attempts(services, run_id, make):
    for sequence in range(3):
        services.ingest.accept(run_id, make.batch(sequence, [10 * sequence + 1]))
    start = make.rollback_start(5)
    services.ingest.accept(run_id, make.batch(0, [6], attempt=2, attempt_start=start))
    with services.database.reading() as session:
        found = Repositories(session).frames.newest(run_id, make.catalog.id, 3)
    assert [(attempt, int(block.steps[0])) for attempt, block in found] == [
        (2, 6),
        (1, 21),
        (1, 11),
    ]


def test_a_codec_of_the_future_is_not_guessed(services, run_id, make, read):
    services.ingest.accept(run_id, make.batch(0, [1]))
    with services.database.transaction() as session:
        session.execute(update(FrameRow).values(codec=9))
    with pytest.raises(StorageError, match="codec 9"):
        read()

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


def test_ranges_leave_blocks_out(services, run_id, make, read):
    for sequence in range(4):
        first = 10 * sequence + 1
        services.ingest.accept(run_id, make.batch(sequence, range(first, first + 10)))
    found = [block.steps[0] for _, block in read(steps=(11, 30))]
    assert found == [11, 21]
    assert read(attempt=2) == []


def test_a_codec_of_the_future_is_not_guessed(services, run_id, make, read):
    services.ingest.accept(run_id, make.batch(0, [1]))
    with services.database.transaction() as session:
        session.execute(update(FrameRow).values(codec=9))
    with pytest.raises(StorageError, match="codec 9"):
        read()

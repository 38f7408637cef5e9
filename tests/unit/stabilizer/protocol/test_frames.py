import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stabilizer.errors import InvalidInputError
from stabilizer.protocol.batches import BatchHeader, Marker, MarkerKind, SnapshotInfo
from stabilizer.protocol.frames import FrameBlock, decode_batch, encode_batch
from stabilizer.protocol.series import Catalog

CATALOG = Catalog.of(["loss", "lr", "grad_norm"])


def block(values, present=None, first_step=1):
    values = np.asarray(values, dtype=np.float32)
    steps = np.arange(first_step, first_step + len(values))
    return FrameBlock(CATALOG.id, steps, steps * 0.5, values, present)


def body(*blocks, **header):
    return encode_batch(BatchHeader(attempt=1, sequence=0, **header), blocks)


@given(
    hnp.arrays(np.uint32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)), st.integers(0, 9)
)
def test_every_bit_pattern_survives(bits, seed):
    values = bits.view(np.float32)
    present = np.random.default_rng(seed).random(values.shape) < 0.5
    steps = np.arange(len(values), dtype=np.int64) + 2**40
    sent = FrameBlock(CATALOG.id, steps, steps / 3, values, present)
    (read,) = decode_batch(body(sent)).blocks
    assert read.values.tobytes() == values.tobytes()
    assert (read.present == present).all()
    assert (read.steps == steps).all()
    assert (read.times == steps / 3).all()


def test_header_travels_with_the_frames():
    header = BatchHeader(
        attempt=3,
        sequence=7,
        markers=(Marker(kind=MarkerKind.ROLLBACK, step=5),),
        snapshots=(SnapshotInfo(id="s", attempt=3, step=4, finite=True),),
    )
    read = decode_batch(encode_batch(header, [block([[1, 2, 3]]), block([[4, 5, 6]])])).header
    assert (read.attempt, read.sequence, read.markers, read.snapshots) == (
        3,
        7,
        header.markers,
        header.snapshots,
    )
    assert [described.num_frames for described in read.blocks] == [1, 1]


def test_a_batch_without_frames_is_a_batch():
    assert decode_batch(body()).blocks == ()


@pytest.mark.parametrize("cut", [0, 3, 11, 12, 40, -1])
def test_a_truncated_body_is_refused(cut):
    with pytest.raises(InvalidInputError) as error:
        decode_batch(body(block([[1, 2, 3]]))[:cut])
    assert error.value.code == "malformed_batch"


def damaged(what):
    whole = body(block([[1, 2, 3]]))
    return {
        "magic": b"XXXX" + whole[4:],
        "version": whole[:4] + struct.pack("<H", 9) + whole[6:],
        "header length": whole[:8] + struct.pack("<I", 2**31) + whole[12:],
        "header json": whole[:12] + b"!" + whole[13:],
        "trailing": whole + b"\0",
    }[what]


@pytest.mark.parametrize("what", ["magic", "version", "header length", "header json", "trailing"])
def test_damage_is_reported_by_field(what):
    with pytest.raises(InvalidInputError) as error:
        decode_batch(damaged(what))
    assert error.value.code == "malformed_batch"
    assert error.value.field.startswith(("body", "header"))


def test_a_header_that_lies_about_its_shape_is_refused():
    whole = body(block([[1, 2, 3]]))
    lying = whole.replace(b'"num_frames":1', b'"num_frames":2')
    with pytest.raises(InvalidInputError, match=r"blocks\.0"):
        decode_batch(lying)


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_be_refused(data):
    with pytest.raises(InvalidInputError):
        decode_batch(b"STBF" + data if len(data) % 2 else data)

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.documents import BadDocumentError, Reason
from trainer.data.sequences import IGNORED_LABEL, Piece, SequenceEncoder
from trainer.data.sources import ParquetSource
from trainer.data.stream import pack
from trainer.data.tokenizer import BOS, EOS, IMAGE

PACKED = {
    "data.packing": {"documents": 12, "rows": 4},
    "data.sequence_length": 112,
    "data.max_images": 8,
}


@pytest.fixture
def stream(make_stream):
    return make_stream(**PACKED)


def piece(tokens, pictures=0):
    return Piece("x", "web", [0] * tokens, [True] * tokens, [b""] * pictures)


def spans(sample):
    """Places of each document's tokens."""
    length = int(sample.attention_mask.sum())
    numbers = sample.document_ids[:length].tolist()
    return {number: [i for i, n in enumerate(numbers) if n == number] for number in set(numbers)}


@given(
    sizes=st.lists(st.tuples(st.integers(2, 20), st.integers(0, 3)), min_size=3, max_size=30),
    rows=st.integers(1, 3),
)
def test_everything_is_packed_once_or_left_out_for_want_of_room(sizes, rows):
    pieces = [piece(*size) for size in sizes]
    packed, left_out = pack(pieces, rows, length=20, max_images=3)
    found = [each for row in packed for each in row.pieces] + left_out
    assert sorted(map(id, found)) == sorted(map(id, pieces))
    for row in packed:
        assert row.pieces
        assert sum(len(each.tokens) for each in row.pieces) == row.tokens <= 20
        assert sum(len(each.pictures) for each in row.pieces) == row.pictures <= 3
    for each in left_out:
        assert all(
            row.tokens + len(each.tokens) > 20 or row.pictures + len(each.pictures) > 3
            for row in packed
        )


def test_a_piece_goes_into_the_first_sequence_with_room():
    pieces = [piece(9), piece(9), piece(7), piece(6), piece(4, pictures=1), piece(1, pictures=1)]
    packed, left_out = pack(pieces, 2, length=16, max_images=1)
    assert [row.pieces for row in packed] == [
        [pieces[0], pieces[2]],
        [pieces[1], pieces[3], pieces[5]],
    ]
    assert left_out == [pieces[4]]


def test_no_sequence_stays_empty_for_want_of_tokens():
    packed, _ = pack([piece(2) for _ in range(5)], 4, length=16, max_images=1)
    assert [row.tokens for row in packed] == [4, 2, 2, 2]


def test_a_position_gives_the_same_sequence_in_any_order_of_asking(make_stream):
    forwards, backwards = make_stream(**PACKED), make_stream(**PACKED)
    samples = {p: forwards.read(p).sample for p in range(40)}
    for position in (39, 0, 17, 3, 38, 21, *range(40)):
        again = backwards.read(position).sample
        assert again.sample_ids == samples[position].sample_ids
        for name in ("input_ids", "labels", "pixel_values", "image_attention_mask"):
            assert torch.equal(getattr(again, name), getattr(samples[position], name))


def test_a_window_holds_the_documents_of_the_mixture(stream, make_stream):
    alone = make_stream()
    for window in range(3):
        expected = [alone.read(window * 12 + i).sample.sample_ids[0] for i in range(12)]
        found = [
            name for row in range(4) for name in stream.read(window * 4 + row).sample.sample_ids
        ]
        assert sorted(found) == sorted(expected)


def test_documents_are_whole_and_in_a_row(stream, tokenizer):
    sample = stream.read(0).sample
    places = spans(sample)
    assert len(places) == len(sample.sample_ids) == len(sample.sources) > 1
    for where in places.values():
        assert where == list(range(where[0], where[-1] + 1))
        assert sample.input_ids[where[0]] == tokenizer.special(BOS)
        assert sample.input_ids[where[-1]] == tokenizer.special(EOS)


def test_packed_documents_are_predicted_as_alone(stream, make_stream):
    """Token for token: nothing is lost, and no document's beginning is asked of another's end."""
    alone = {}
    for position in range(12):
        sample = make_stream().read(position).sample
        alone[sample.sample_ids[0]] = sample.labels[1:][sample.labels[1:] != IGNORED_LABEL].tolist()
    for row in range(4):
        sample = stream.read(row).sample
        for number, where in spans(sample).items():
            labels = sample.labels[where[0] + 1 : where[-1] + 1]
            kept = labels[labels != IGNORED_LABEL].tolist()
            assert kept == alone[sample.sample_ids[number]]
            assert where[0] == 0 or sample.labels[where[0]] == IGNORED_LABEL


@pytest.mark.parametrize("seen", ["last", "all"])
def test_a_token_sees_pictures_before_it_in_its_own_document_alone(make_stream, tokenizer, seen):
    stream = make_stream(**PACKED, **{"data.images_seen": seen})
    for row in range(8):
        sample = stream.read(row).sample
        owners = [
            int(sample.document_ids[place])
            for place in (sample.input_ids == tokenizer.special(IMAGE)).nonzero().flatten()
        ]
        before = -1
        for place in range(112):
            before += int(sample.input_ids[place] == tokenizer.special(IMAGE))
            document = int(sample.document_ids[place])
            mine = [i for i in range(before + 1) if owners[i] == document]
            expected = mine if seen == "all" else mine[-1:]
            assert sample.image_attention_mask[place].nonzero().flatten().tolist() == expected


def test_pictures_stand_in_the_order_of_their_tokens(stream, make_stream):
    alone = {}
    for position in range(12):
        sample = make_stream().read(position).sample
        alone[sample.sample_ids[0]] = sample.pixel_values
    sample = stream.read(1).sample
    place = 0
    for name in sample.sample_ids:
        for picture in alone[name]:
            if picture.any():
                assert torch.equal(sample.pixel_values[place], picture)
                place += 1
    assert not sample.pixel_values[place:].any()


def test_what_finds_no_room_is_counted_once_per_window(make_stream):
    tight = PACKED | {"data.packing": {"documents": 12, "rows": 2}, "data.sequence_length": 64}
    stream = make_stream(**tight)
    reads = [stream.read(position) for position in range(20)]
    left_out = Counter(skip.reason for read in reads for skip in read.skips)
    placed = sum(len(read.sample.sample_ids) for read in reads)
    assert left_out == {Reason.NO_ROOM: 10 * 12 - placed}
    assert left_out.total() > 0
    assert all(not read.skips for read in reads[1::2])


def test_long_documents_go_on_in_another_sequence(make_stream):
    short = {"data.packing": {"documents": 4, "rows": 4}, "data.sequence_length": 24}
    stream = make_stream(**short)
    rows = [stream.read(position) for position in range(40)]
    names = [name for read in rows for name in read.sample.sample_ids]
    assert any(count > 1 for count in Counter(names).values())
    assert all(int(read.sample.attention_mask.sum()) <= 24 for read in rows)


@pytest.fixture
def undecodable(monkeypatch):
    """Let the pictures of some documents be such that nobody can decode them."""

    def spoil(names):
        decode = SequenceEncoder.decode

        def fail(self, found):
            if found.sample_id in names:
                raise BadDocumentError(found.sample_id, "is spoiled", Reason.PICTURE_UNDECODABLE)
            return decode(self, found)

        monkeypatch.setattr(SequenceEncoder, "decode", fail)

    return spoil


@pytest.fixture
def unreadable(monkeypatch):
    """Let some documents not be readable at all."""

    def spoil(names):
        read = ParquetSource.document

        def fail(self, index):
            found = read(self, index)
            if found.sample_id in names:
                raise BadDocumentError(found.sample_id, "is gone", Reason.UNREADABLE)
            return found

        monkeypatch.setattr(ParquetSource, "document", fail)

    return spoil


def test_a_document_with_a_bad_picture_is_left_out_of_its_sequence(
    stream, make_stream, undecodable
):
    good = stream.read(0).sample
    bad = good.sample_ids[1]
    undecodable({bad})
    read = make_stream(**PACKED).read(0)
    assert read.sample.sample_ids == tuple(name for name in good.sample_ids if name != bad)
    assert [(skip.sample_id, skip.reason) for skip in read.skips] == [
        (bad, Reason.PICTURE_UNDECODABLE)
    ]
    assert read.passed_over == 1


def test_a_sequence_of_which_nothing_is_left_gets_another_document(
    stream, make_stream, undecodable
):
    gone = set(stream.read(2).sample.sample_ids)
    undecodable(gone)
    read, again = (make_stream(**PACKED).read(2) for _ in range(2))
    assert len(read.sample.sample_ids) == 1
    assert not gone & set(read.sample.sample_ids)
    assert read.sample.sample_ids == again.sample.sample_ids
    assert {skip.sample_id for skip in read.skips} == gone


def test_a_document_that_cannot_be_read_is_replaced_in_its_window(stream, make_stream, unreadable):
    bad = stream.read(0).sample.sample_ids[0]
    unreadable({bad})
    fresh = make_stream(**PACKED)
    names = [name for row in range(4) for name in fresh.read(row).sample.sample_ids]
    assert len(names) == 12
    assert bad not in names


def test_a_pass_is_as_many_sequences_as_windows_have(stream):
    assert stream.samples_per_pass == 45 * 4 // 12


def test_only_so_many_windows_are_held(stream):
    for position in range(0, 80, 4):
        stream.read(position)
    assert len(stream._windows) == 4

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stabilizer.errors import ConfigurationError
from trainer.data.encoding import DocumentEncoder
from trainer.data.parquet import SCHEMA, ParquetSource
from trainer.data.stream import DocumentStream, MixtureOrder

SIZES = {"web": 12, "pairs": 5}
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
    order = MixtureOrder({"web": 12}, {"web": 1}, seed=0)
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


def test_a_position_gives_the_same_sample_in_any_order_of_asking(make_stream):
    forwards, backwards = make_stream(), make_stream()
    samples = {p: forwards.read(p).sample for p in range(90)}
    for position in reversed(range(90)):
        again = backwards.read(position).sample
        assert again.sample_id == samples[position].sample_id
        assert torch.equal(again.input_ids, samples[position].input_ids)
        assert torch.equal(again.pixel_values, samples[position].pixel_values)


@pytest.fixture
def stream_of(tmp_path, tokenizer):
    """Return a function that makes a stream over rows that are good or bad."""

    def make(goods, max_bad_in_a_row=16):
        rows = [
            {"images": [None], "texts": [str(i)]} if good else {"images": [], "texts": []}
            for i, good in enumerate(goods)
        ]
        (tmp_path / "web").mkdir()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "web" / "p.parquet")
        encoder = DocumentEncoder(tokenizer, sequence_length=16, max_images=1, image_size=16)
        return DocumentStream(
            {"web": ParquetSource(tmp_path, "web")},
            MixtureOrder({"web": len(goods)}, {"web": 1}, seed=0),
            encoder,
            max_bad_in_a_row=max_bad_in_a_row,
        )

    return make


def test_a_bad_document_is_replaced_and_counted(stream_of):
    stream = stream_of([i % 3 != 0 for i in range(12)])
    reads = [stream.read(p) for p in range(12)]
    assert sum(read.passed_over for read in reads) == 4
    assert [read.sample.position for read in reads] == list(range(12))
    again = [stream.read(p).sample.sample_id for p in range(12)]
    assert again == [read.sample.sample_id for read in reads]


def test_too_many_bad_documents_in_a_row_stop_the_job(stream_of):
    stream = stream_of([False] * 8, max_bad_in_a_row=3)
    with pytest.raises(
        ConfigurationError, match=r"4 unusable documents in a row at sample 5.*web/"
    ):
        stream.read(5)

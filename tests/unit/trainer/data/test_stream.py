import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stabilizer.errors import ConfigurationError
from trainer.data.order import MixtureOrder
from trainer.data.reading import DocumentReader
from trainer.data.sequences import SequenceEncoder
from trainer.data.sources import ParquetSource, list_files
from trainer.data.sources.parquet import SCHEMA
from trainer.data.stream import DocumentStream


def test_a_position_gives_the_same_sample_in_any_order_of_asking(make_stream):
    forwards, backwards = make_stream(), make_stream()
    samples = {p: forwards.read(p).sample for p in range(90)}
    for position in reversed(range(90)):
        again = backwards.read(position).sample
        assert again.sample_ids == samples[position].sample_ids
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
        source = ParquetSource("web", list_files("web", str(tmp_path / "web"), ".parquet"))
        reader = DocumentReader(
            {"web": source},
            MixtureOrder({"web": source.blocks}, {"web": 1}, seed=0),
            max_bad_in_a_row=max_bad_in_a_row,
        )
        encoder = SequenceEncoder(tokenizer, sequence_length=16, max_images=1, image_size=16)
        return DocumentStream(reader, encoder)

    return make


def test_a_bad_document_is_replaced_and_counted(stream_of):
    stream = stream_of([i % 3 != 0 for i in range(12)])
    reads = [stream.read(p) for p in range(12)]
    assert sum(read.passed_over > 0 for read in reads) == 4
    assert [read.sample.position for read in reads] == list(range(12))
    again = [stream.read(p).sample.sample_ids for p in range(12)]
    assert again == [read.sample.sample_ids for read in reads]


def test_too_many_bad_documents_in_a_row_stop_the_job(stream_of):
    stream = stream_of([False] * 8, max_bad_in_a_row=3)
    with pytest.raises(
        ConfigurationError, match=r"4 unusable documents in a row at sample 5.*web/"
    ):
        stream.read(5)

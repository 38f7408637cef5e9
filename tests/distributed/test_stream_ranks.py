"""Two gloo ranks, one of them with a worker, read one stream between them."""

from __future__ import annotations

import json

import pytest

from trainer.config import load_config
from trainer.data import open_tokenizer, open_training_stream
from trainer.data.making import make_corpus

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, documents=30, seed=0)
    return folder


PACKINGS = [None, {"documents": 12, "rows": 4}]


@pytest.fixture(scope="module")
def found(corpus, start_ranks):
    """What each rank has read, for each packing."""
    out = corpus.with_name(corpus.name + ".json")
    start_ranks("stream_rank.py", corpus, json.dumps(PACKINGS), out)
    return json.loads(out.read_text())


@pytest.mark.parametrize("index", range(len(PACKINGS)), ids=["alone", "packed"])
def test_two_ranks_read_every_sample_once_over_a_restore_and_a_skip(corpus, found, index):
    packing, ranks = PACKINGS[index], found[index]
    fields = {"data.folder": str(corpus), "data.packing": packing}
    if packing:
        fields |= {"data.sequence_length": 112, "data.max_images": 8}
    config = load_config("idefics-tiny", fields=fields).data
    stream = open_training_stream(config, open_tokenizer(config), image_size=16, seed=0)
    # Seven batches of two samples on each of two ranks, the last one after eight skipped samples.
    starts = [4 * batch for batch in range(6)] + [32]
    for batch, start in enumerate(starts):
        for rank in range(2):
            positions, sample_ids, input_ids = ranks[rank][batch]
            assert positions == [start + 2 * rank, start + 2 * rank + 1]
            samples = [stream.read(position).sample for position in positions]
            assert sample_ids == [name for sample in samples for name in sample.sample_ids]
            assert input_ids == [sample.input_ids.tolist() for sample in samples]

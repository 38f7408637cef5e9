"""Two gloo ranks, one of them with a worker, read one stream between them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import load_config
from trainer.data import open_tokenizer, open_training_stream
from trainer.data.making import make_corpus

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, documents=30, seed=0)
    return folder


def run_ranks(corpus, packing, out):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).parent / "stream_rank.py"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(corpus), json.dumps(packing), str(out)],
            env=os.environ
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
            | {"RANK": str(rank), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    texts = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(texts)
    return json.loads(out.read_text())


@pytest.mark.parametrize("packing", [None, {"documents": 12, "rows": 4}], ids=["alone", "packed"])
def test_two_ranks_read_every_sample_once_over_a_restore_and_a_skip(corpus, tmp_path, packing):
    fields = {"data.folder": str(corpus), "data.packing": packing}
    if packing:
        fields |= {"data.sequence_length": 112, "data.max_images": 8}
    config = load_config("idefics-tiny", fields=fields).data
    stream = open_training_stream(config, open_tokenizer(config), image_size=16, seed=0)
    ranks = run_ranks(corpus, packing, tmp_path / "out.json")
    # Seven batches of two samples on each of two ranks, the last one behind eight skipped samples.
    starts = [4 * batch for batch in range(6)] + [32]
    for batch, start in enumerate(starts):
        for rank in range(2):
            positions, sample_ids, input_ids = ranks[rank][batch]
            assert positions == [start + 2 * rank, start + 2 * rank + 1]
            samples = [stream.read(position).sample for position in positions]
            assert sample_ids == [name for sample in samples for name in sample.sample_ids]
            assert input_ids == [sample.input_ids.tolist() for sample in samples]

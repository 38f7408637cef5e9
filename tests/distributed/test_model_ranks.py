"""Two gloo ranks: a part that unfreezes under DDP, and a sharded start from pretrained weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
RANK = Path(__file__).parent / "model_rank.py"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What both ranks report, by the name of what they do."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(5)
    llama = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=2, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outs = [folder / f"{rank}.json" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(out), str(folder / "llama")],
            env=os.environ
            | {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": "2",
                "NODE_RANK": "0",
                "LOCAL_RANK": str(rank),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    texts = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(texts)
    return [json.loads(out.read_text()) for out in outs]


def test_a_part_unfreezes_on_both_ranks_and_their_weights_stay_one(reports):
    first, second = (report["unfreeze"] for report in reports)
    assert first == second  # a gradient that was not reduced would drive them apart
    norms = [sums["language_norms"] for sums in first]
    assert norms[0] == norms[1] == norms[2] != norms[3] != norms[4]
    assert len({sums["language_layers"] for sums in first}) == 1
    assert len({sums["gates"] for sums in first}) == len(first)


def test_shards_are_filled_from_files_and_the_rest_from_chance(reports):
    for report in (report["sharded_start"] for report in reports):
        assert len(report["loaded"]) == 39
        assert sorted(report["equal"]) == report["loaded"]
        assert report["local"] == 24  # half of the rows
        assert report["latents"] == pytest.approx(1.0, rel=0.3)
        assert report["alpha"] == 1.0
        assert report["scale"] > 1.0


def test_a_sharded_model_in_two_formats_learns_what_is_not_frozen(reports):
    for report in (report["sharded_start"] for report in reports):
        assert report["finite"]
        assert set(report["learns"]) == {
            "added_norms", "cross_attention", "gates", "new_tokens", "resampler", "vision",
            "vision_norms",
        }  # fmt: skip

"""Two gloo ranks: a part that unfreezes under DDP, and a sharded start from pretrained weights."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def reports(start_ranks, tmp_path_factory):
    """What both ranks report, by the name of what they do."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(5)
    llama = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=2, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    outs = [folder / f"{rank}.json" for rank in range(2)]
    start_ranks("model_rank.py", outs, folder / "llama")
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

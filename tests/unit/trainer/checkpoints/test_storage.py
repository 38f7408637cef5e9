from __future__ import annotations

import json
import pickle

import pytest
import torch

from trainer.checkpoints import CheckpointError, SafeCheckpointIO

STATE = {
    "global_step": 3,
    "state_dict": {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)},
    "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "betas": (0.9, 0.95)}],
}


@pytest.fixture
def saved(tmp_path):
    SafeCheckpointIO().save_checkpoint(STATE, tmp_path / "one")
    return tmp_path / "one"


def test_a_state_comes_back_as_it_was(saved):
    back = SafeCheckpointIO().load_checkpoint(saved)
    assert torch.equal(back["state_dict"]["w"], STATE["state_dict"]["w"])
    assert back["state_dict"]["b"].dtype == torch.bfloat16
    optimizer = back["optimizer_states"][0]
    assert optimizer["betas"] == (0.9, 0.95)
    assert torch.equal(optimizer["state"][0]["step"], torch.tensor(3.0))
    assert back["global_step"] == 3


def test_nothing_in_it_is_a_pickle(saved):
    names = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert names == {".json", ".safetensors"}
    for path in saved.rglob("*.*"):
        assert not path.read_bytes().startswith(pickle.dumps(0, protocol=2)[:2])


def test_tied_weights_are_written_and_come_back(tmp_path):
    weight = torch.randn(3, 3)
    tree = {"state_dict": {"embedding": weight, "head": weight, "row": weight[1]}}
    SafeCheckpointIO().save_checkpoint(tree, tmp_path / "tied")
    back = SafeCheckpointIO().load_checkpoint(tmp_path / "tied")["state_dict"]
    assert torch.equal(back["head"], weight)
    assert torch.equal(back["row"], weight[1])


def test_a_state_that_cannot_be_kept_leaves_nothing_behind(tmp_path):
    with pytest.raises(CheckpointError, match="callbacks/Mine: a set cannot be kept"):
        SafeCheckpointIO().save_checkpoint({"callbacks": {"Mine": {1}}}, tmp_path / "one")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["state.json", "tensors"])
def test_a_damaged_checkpoint_is_refused(saved, name):
    victim = saved / name if name == "state.json" else next((saved / name).iterdir())
    content = bytearray(victim.read_bytes())
    content[-3] ^= 1
    victim.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="is damaged"):
        SafeCheckpointIO().load_checkpoint(saved)


def test_a_forged_state_cannot_name_a_tensor_that_is_not_there(saved):
    state = saved / "state.json"
    state.write_text(json.dumps({"state_dict": {"$tensor": "../../etc/passwd"}}))
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest["files"]["state.json"]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="damaged at"):
        SafeCheckpointIO().load_checkpoint(saved)


def test_a_pickled_checkpoint_is_not_even_opened(tmp_path):
    torch.save(STATE, tmp_path / "strange.ckpt")
    with pytest.raises(CheckpointError, match="is not a checkpoint of this trainer"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "strange.ckpt")


def test_removing_removes(saved):
    SafeCheckpointIO().remove_checkpoint(saved)
    SafeCheckpointIO().remove_checkpoint(saved)
    assert not saved.exists()

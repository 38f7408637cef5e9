import json

import huggingface_hub.constants as hub
import pytest
import torch
from safetensors.torch import save_file

from stabilizer.errors import ConfigurationError
from trainer.module.pretrained import WeightFiles, find_folder

FIELD = "model.pretrained.language"


@pytest.fixture
def two_files(tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(2, 2)}, tmp_path / "two.safetensors")
    return tmp_path


def write_index(folder, **weight_map):
    content = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


def test_all_files_of_a_folder_are_one_set_of_tensors(two_files):
    files = WeightFiles(two_files, FIELD)
    assert sorted(files) == ["a", "b"]
    assert (len(files), "a" in files, "c" in files) == (2, True, False)
    assert files.shape("b") == (2, 2)
    assert torch.equal(files.read("a"), torch.arange(3.0))
    files.close()


def test_an_index_says_which_files_count(two_files):
    write_index(two_files, a="one.safetensors")
    assert list(WeightFiles(two_files, FIELD)) == ["a"]


def test_one_file_of_the_usual_name_is_taken_alone(two_files):
    save_file({"c": torch.ones(1)}, two_files / "model.safetensors")
    assert list(WeightFiles(two_files, FIELD)) == ["c"]


def test_a_file_that_the_index_names_and_nobody_has_is_reported(two_files):
    write_index(two_files, a="one.safetensors", c="three.safetensors")
    with pytest.raises(ConfigurationError, match=r"lacks the files three\.safetensors"):
        WeightFiles(two_files, FIELD)


def test_an_index_cannot_reach_out_of_the_folder(two_files):
    inner = two_files / "inner"
    inner.mkdir()
    write_index(inner, a="../one.safetensors")
    with pytest.raises(ConfigurationError, match="lacks the files"):
        WeightFiles(inner, FIELD)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_broken_index_is_reported(two_files, text):
    (two_files / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ConfigurationError, match="is no index"):
        WeightFiles(two_files, FIELD)


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!", b"x" * 100])
def test_a_broken_file_is_reported_with_its_name(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"model\.safetensors cannot be read"):
        WeightFiles(tmp_path, FIELD)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "consolidated.00.pth"])
def test_pickles_are_never_read(tmp_path, name):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save(Trap(), tmp_path / name)
    with pytest.raises(ConfigurationError) as caught:
        WeightFiles(tmp_path, FIELD)
    assert caught.value.message.startswith(f"{FIELD}: {tmp_path} holds no weights as safetensors")
    assert name in caught.value.message
    assert not (tmp_path / "sprung").exists()


def test_an_empty_folder_is_reported(tmp_path):
    with pytest.raises(ConfigurationError, match="safetensors, none; allowed"):
        WeightFiles(tmp_path, FIELD)


def test_a_local_folder_is_taken_before_the_hub_is_asked(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_folder("owner/name", FIELD).resolve() == tmp_path / "owner" / "name"


@pytest.mark.parametrize("source", ["nowhere", "/no/such/folder", "a/b/c", "owner/na me", "../x/y"])
def test_what_is_neither_folder_nor_name_is_reported(source):
    with pytest.raises(ConfigurationError) as caught:
        find_folder(source, FIELD)
    assert caught.value.message.startswith(f"{FIELD}: {source!r} cannot be used; allowed: a folder")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A hub that nobody can ask, and its cache with one model in it."""
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--owner--name"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    save_file({"a": torch.ones(1)}, snapshot / "model.safetensors")
    return snapshot


@pytest.mark.parametrize("revision", ["", "@main", "@" + "0" * 40])
def test_a_name_in_the_cache_needs_no_hub(offline, revision):
    assert find_folder(f"owner/name{revision}", FIELD) == offline


@pytest.mark.parametrize("source", ["owner/other", "owner/name@v2"])
def test_without_the_hub_another_name_is_reported_with_what_helps(offline, source):
    with pytest.raises(ConfigurationError) as caught:
        find_folder(source, FIELD)
    assert caught.value.message.startswith(f"{FIELD}: {source!r} is no folder here")
    assert "HF_HUB_OFFLINE=0" in caught.value.message


def test_a_name_that_the_hub_cannot_have_is_reported(offline):
    with pytest.raises(ConfigurationError, match="the hub does not give it"):
        find_folder("owner/-name--", FIELD)

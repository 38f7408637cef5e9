import io
import json
import tarfile

import fsspec
import pytest

from stabilizer.errors import ConfigurationError
from trainer.data.documents import BadDocumentError, Reason
from trainer.data.sources import TarSource, list_files


def write(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def pair(key, caption="a caption"):
    return [(f"{key}.jpg", f"picture {key}".encode()), (f"{key}.txt", caption.encode())]


def open_source(path, **options):
    return TarSource("pairs", list_files("data.sources.pairs", str(path), ".tar"), **options)


@pytest.fixture
def source_of(tmp_path):
    def make(*members):
        write(tmp_path / "pairs" / "0.tar", members)
        return open_source(tmp_path / "pairs")

    return make


def test_samples_are_read_by_number_in_any_order(tmp_path):
    for shard in range(2):
        members = [m for i in range(3) for m in pair(f"{shard}{i}", f"caption {shard}{i}")]
        write(tmp_path / f"{shard}.tar", members)
    source = open_source(tmp_path)
    assert len(source) == 6
    for number in (5, 0, 3, 1, 4, 2):
        document = source.document(number)
        key = f"{number // 3}{number % 3}"
        assert document.parts == (f"picture {key}".encode(), f"caption {key}")
        assert document.sample_id == f"pairs/{number // 3}.tar:{key}"


def test_shards_behind_a_url_are_read_as_local_ones(tmp_path):
    write(tmp_path / "0.tar", [m for i in range(3) for m in pair(f"{i}")])
    fsspec.filesystem("memory").pipe("/pairs/0.tar", (tmp_path / "0.tar").read_bytes())
    here, there = open_source(tmp_path), open_source("memory://pairs")
    assert [there.document(i) for i in range(3)] == [here.document(i) for i in range(3)]


@pytest.mark.parametrize("key", ["caption", "text"])
def test_a_caption_may_be_json(source_of, key):
    content = json.dumps({"width": 3, key: " seen "}).encode()
    source = source_of(("a.png", b"png"), ("a.json", content))
    assert source.document(0).parts == (b"png", "seen")


def test_a_text_counts_before_json(source_of):
    source = source_of(("a.json", b'{"caption": "no"}'), ("a.webp", b"webp"), ("a.txt", b"yes"))
    assert source.document(0).parts == (b"webp", "yes")


def test_other_members_and_folders_do_not_matter(source_of):
    source = source_of(
        ("README", b"x"),
        *pair("one/a"),
        ("one/a.seg.png", b"mask"),
        ("a.cls", b"3"),
        *pair("two/a"),
    )
    assert [source.document(i).sample_id for i in range(len(source))] == [
        "pairs/0.tar:one/a",
        "pairs/0.tar:two/a",
    ]


def test_long_names_are_read(source_of):
    assert source_of(*pair("x" * 200)).document(0).parts[0].startswith(b"picture xxx")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.txt", b"alone")], "it has no picture"),
        ([("a.jpg", b"alone")], "it has no caption"),
        ([("a.jpg", b"j"), ("a.txt", b" \n")], "no text, or empty"),
        ([("a.jpg", b"j"), ("a.txt", b"\xff\xfe")], "caption cannot be read"),
        ([("a.jpg", b"j"), ("a.json", b"{")], "caption cannot be read"),
        ([("a.jpg", b"j"), ("a.json", b"[" * 100_000)], "caption cannot be read"),
        ([("a.jpg", b"j"), ("a.json", b'{"text": "\\ud83d"}')], "no Unicode"),
        ([("a.jpg", b"j"), ("a.json", b'{"label": 3}')], "no text, or empty"),
    ],
)
def test_a_sample_that_is_not_whole_is_a_bad_document(source_of, members, message):
    with pytest.raises(BadDocumentError, match=message) as caught:
        source_of(*members).document(0)
    assert caught.value.sample_id == "pairs/0.tar:a"
    assert caught.value.reason is Reason.WRONG_SCHEMA


@pytest.mark.parametrize("index", [-1, 1])
def test_a_number_outside_is_refused(source_of, index):
    with pytest.raises(IndexError):
        source_of(*pair("a")).document(index)


def test_a_compressed_shard_under_the_name_of_a_plain_one_is_refused(tmp_path):
    write(tmp_path / "0.tar", pair("a"), mode="w:gz")
    with pytest.raises(ConfigurationError, match="not a plain tar"):
        open_source(tmp_path)


def test_a_shard_with_another_ending_is_refused(tmp_path):
    write(tmp_path / "0.tar.gz", pair("a"), mode="w:gz")
    with pytest.raises(ConfigurationError, match=r"allowed: plain \.tar files"):
        open_source(tmp_path / "0.tar.gz")


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:700], lambda b: b"\xff" * 512 + b])
def test_a_damaged_shard_is_left_out_and_reported(tmp_path, damage):
    for shard in range(3):
        write(tmp_path / f"{shard}.tar", pair(f"{shard}"))
    (tmp_path / "1.tar").write_bytes(damage((tmp_path / "1.tar").read_bytes()))
    source = open_source(tmp_path)
    assert [source.document(i).parts[0] for i in range(len(source))] == [b"picture 0", b"picture 2"]
    assert [(skip.reason, skip.sample_id) for skip in source.skipped] == [
        (Reason.UNREADABLE, "pairs/1.tar")
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: 4 * 512],  # behind a sample, without the blocks of zeros that end a tar
        lambda b: b[: 4 * 512 + 200],  # in a header
        lambda b: b[: 5 * 512],  # behind a header
        lambda b: b[: 4 * 512] + b"\xff" * 512 + b[5 * 512 :],  # a header that is none
    ],
    ids=["behind a sample", "in a header", "behind a header", "a header"],
)
def test_of_a_shard_damaged_later_on_the_samples_before_are_read(tmp_path, caplog, damage):
    write(tmp_path / "0.tar", [m for i in range(3) for m in pair(f"{i}")])
    write(tmp_path / "1.tar", pair("3"))
    (tmp_path / "0.tar").write_bytes(damage((tmp_path / "0.tar").read_bytes()))
    source = open_source(tmp_path)
    names = [source.document(i).sample_id for i in range(len(source))]
    assert names[:1] == ["pairs/0.tar:0"]
    assert names[-1:] == ["pairs/1.tar:3"]
    assert "pairs/0.tar:2" not in names
    assert [skip.sample_id for skip in source.skipped] == ["pairs/0.tar"]
    assert "is used up to its document 1" in caplog.text


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"x" * 600)])
def test_a_shard_damaged_later_gives_bad_documents(tmp_path, damage):
    write(tmp_path / "0.tar", pair("a"))
    source = open_source(tmp_path)
    damage(tmp_path / "0.tar")
    with pytest.raises(BadDocumentError) as caught:
        source.document(0)
    assert caught.value.reason is Reason.UNREADABLE


def test_a_sample_of_absurd_size_is_not_read(source_of, monkeypatch):
    monkeypatch.setattr("trainer.data.sources.tars._MAX_BYTES", 100)
    with pytest.raises(BadDocumentError, match="more than 100"):
        source_of(*pair("a", "long " * 30)).document(0)


def test_blocks_are_stretches_of_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.sources.tars._BLOCK", 2)
    for shard in range(2):
        write(tmp_path / f"{shard}.tar", [m for i in range(3) for m in pair(f"{i}")])
    assert list(open_source(tmp_path).blocks) == [2, 1, 2, 1]


def test_a_sample_is_found_by_its_id(tmp_path):
    for shard in range(2):
        write(tmp_path / f"{shard}.tar", [m for i in range(3) for m in pair(f"a:{i}")])
    source = open_source(tmp_path)
    assert [source.number(source.document(i).sample_id) for i in range(6)] == list(range(6))
    with pytest.raises(KeyError):
        source.number("pairs/0.tar:a:7")

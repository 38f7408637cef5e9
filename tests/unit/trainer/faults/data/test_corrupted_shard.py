from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stabilizer.errors import ConfigurationError
from trainer.faults import CorruptedShard, corrupt_file, show_corrupted_corpus


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "corpus" / "web" / "part.parquet"
    path.parent.mkdir(parents=True)
    table = pa.table({"text": [f"{number} " * 40 for number in range(2000)]})
    pq.write_table(table, path)
    (path.parent / "other.parquet").write_bytes(b"another file")
    return path


def test_a_damaged_parquet_file_opens_and_cannot_be_read(shard, tmp_path):
    before = shard.read_bytes()
    corrupt_file(shard, tmp_path / "bad.parquet", part=1.0)
    damaged = pq.ParquetFile(tmp_path / "bad.parquet")
    assert damaged.metadata.num_rows == 2000
    with pytest.raises((pa.ArrowException, OSError)):
        damaged.read()
    assert shard.read_bytes() == before


def test_the_seed_says_where_the_damage_is(shard, tmp_path):
    def damage(seed):
        corrupt_file(shard, tmp_path / "bad", seed=seed)
        return (tmp_path / "bad").read_bytes()

    assert damage(1) == damage(1)
    assert damage(1) != damage(2)
    assert len(damage(1)) == shard.stat().st_size


def test_a_part_of_the_row_groups_can_still_be_read(tmp_path):
    path = tmp_path / "many.parquet"
    table = pa.table({"text": [f"{number}" for number in range(2000)]})
    pq.write_table(table, path, row_group_size=50, compression="none", use_dictionary=False)
    assert pq.ParquetFile(path).metadata.serialized_size > 512  # more than what stays of any file
    corrupt_file(path, tmp_path / "bad.parquet", part=0.4)
    good, bad = (pq.ParquetFile(tmp_path / name) for name in ("many.parquet", "bad.parquet"))
    assert bad.metadata.num_rows == 2000
    changed = 0
    for group in range(40):
        try:
            changed += bad.read_row_group(group) != good.read_row_group(group)
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            changed += 1
    assert 0 < changed < 20


@pytest.mark.parametrize("part", [0.25, 1.0])
def test_a_truncated_file_lacks_its_end(shard, tmp_path, part):
    corrupt_file(shard, tmp_path / "short", damage="truncated", part=part)
    kept = round(shard.stat().st_size * (1 - part))
    assert (tmp_path / "short").read_bytes() == shard.read_bytes()[:kept]


@pytest.mark.parametrize("size", [0, 10, 1100])
def test_small_files_survive_being_damaged(tmp_path, size):
    (tmp_path / "small").write_bytes(b"x" * size)
    corrupt_file(tmp_path / "small", tmp_path / "bad")
    assert len((tmp_path / "bad").read_bytes()) == size


def test_the_view_shows_the_corpus_with_one_file_damaged(shard, tmp_path):
    corpus = shard.parents[1]
    view = show_corrupted_corpus(corpus, "web/part.parquet", tmp_path / "view")
    assert (view / "web" / "other.parquet").read_bytes() == b"another file"
    assert (view / "web" / "part.parquet").read_bytes() != shard.read_bytes()
    again = show_corrupted_corpus(corpus, "web/part.parquet", tmp_path / "view", seed=1)
    assert sorted(path.name for path in again.rglob("*.parquet")) == [
        "other.parquet",
        "part.parquet",
    ]


@pytest.mark.parametrize("name", ["web/none.parquet", "web", "web/../web/part.parquet"])
def test_a_file_that_is_none_of_the_corpus_is_refused(shard, tmp_path, name):
    corpus = shard.parents[1]
    with pytest.raises(ConfigurationError, match=r"corrupted_shard\.shard.*web/other\.parquet"):
        show_corrupted_corpus(corpus, name, tmp_path / "view")
    assert not Path(tmp_path / "view").exists()


def test_a_file_named_by_its_whole_path_is_refused_and_stays(shard, tmp_path):
    before = shard.read_bytes()
    with pytest.raises(ConfigurationError, match=r"corrupted_shard\.shard.*web/other\.parquet"):
        show_corrupted_corpus(shard.parents[1], str(shard), tmp_path / "view")
    assert shard.read_bytes() == before
    assert not (tmp_path / "view").exists()


@pytest.mark.parametrize("name", [" ", "/corpus/web/part.parquet", "../web/part.parquet"])
def test_the_configuration_takes_only_what_lies_below_the_corpus(name):
    with pytest.raises(ValueError, match="a file below"):
        CorruptedShard(shard=name)
    assert CorruptedShard(shard="web/part.parquet").shard == "web/part.parquet"


def test_folders_that_are_links_are_shown_and_stay_as_they_are(shard, tmp_path):
    corpus, before = tmp_path / "linked", shard.read_bytes()
    corpus.mkdir()
    (corpus / "pages").symlink_to(shard.parent)
    (corpus / "again").symlink_to(shard.parent)
    (corpus / "around").symlink_to(corpus)
    view = show_corrupted_corpus(corpus, "pages/part.parquet", tmp_path / "view")
    assert (view / "pages" / "part.parquet").read_bytes() != before
    assert (view / "again" / "part.parquet").read_bytes() == before
    assert (view / "pages" / "other.parquet").read_bytes() == b"another file"
    assert not (view / "around").exists()
    assert shard.read_bytes() == before
    assert sorted(path.name for path in shard.parent.iterdir()) == ["other.parquet", "part.parquet"]

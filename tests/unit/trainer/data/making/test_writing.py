import hashlib
import io
import json
import re
import tarfile

import pyarrow.parquet as pq
import pytest
from PIL import Image

from stabilizer.errors import ConfigurationError
from trainer.data.making import HELDOUT_DOCUMENTS, NUMBERS, make_corpus
from trainer.data.tokenizer import END_OF_UTTERANCE, EOS, SPECIAL_TOKENS

GOLDEN = "e8b527ecfb3eae774bf5e7d27df41b4b24f4ce95d80868807329501a75985823"


def rows(folder, source):
    return pq.read_table(folder / source).to_pylist()


@pytest.mark.parametrize("source", ["web_documents", "image_text_pairs"])
def test_rows_are_of_the_obelics_schema(corpus, source):
    for row in rows(corpus, source):
        assert len(row["images"]) == len(row["texts"]) > 0
        for image, text in zip(row["images"], row["texts"], strict=True):
            assert (image is None) != (text is None)


def test_counts_are_those_asked_for(corpus):
    assert len(rows(corpus, "web_documents")) == 30
    assert len(rows(corpus, "image_text_pairs")) == 15
    assert len(rows(corpus, "heldout/web_documents")) == HELDOUT_DOCUMENTS


def test_pictures_are_real_digits(corpus):
    file = next(i for i in rows(corpus, "image_text_pairs")[0]["images"] if i)["bytes"]
    with Image.open(io.BytesIO(file)) as image:
        assert (image.format, image.size) == ("PNG", (8, 8))
        assert len(set(image.tobytes())) > 4


def test_the_caption_names_the_digit_of_its_picture(corpus):
    for row in rows(corpus, "image_text_pairs"):
        (digit,) = json.loads(row["metadata"])
        assert NUMBERS[digit] in row["texts"][1]


def test_sums_are_right(corpus):
    texts = " ".join(t for row in rows(corpus, "web_documents") for t in row["texts"] if t)
    found = re.findall(r"(\w+) plus (\w+) is (\w+)", texts)
    assert found
    for first, second, total in found:
        assert NUMBERS.index(first) + NUMBERS.index(second) == NUMBERS.index(total)


def test_held_out_pictures_are_never_trained_on(corpus):
    def pictures(prefix):
        sources = ("web_documents", "image_text_pairs")
        return {
            i["bytes"] for s in sources for r in rows(corpus, prefix + s) for i in r["images"] if i
        }

    assert not pictures("") & pictures("heldout/")


def test_same_arguments_write_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        make_corpus(tmp_path / name, documents=6, seed=1)
    make_corpus(tmp_path / "c", documents=6, seed=2)
    first, second, other = (rows(tmp_path / name, "web_documents") for name in "abc")
    assert first == second != other
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in "ab"]
    assert files[0] == files[1]


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_file_of_a_seed_is_the_same_to_a_byte(tmp_path):
    options = {"documents": 6, "seed": 1, "pairs_format": "webdataset", "conversations": 5}
    for name in ("a", "b"):
        make_corpus(tmp_path / name, **options)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_the_corpus_that_runs_are_tuned_on_stays_as_it_was(tmp_path):
    """Documents, order and tokenizer of a seed; the containers are their libraries' business."""
    make_corpus(tmp_path, documents=40, seed=0)
    everything = [rows(tmp_path, source) for source in ("web_documents", "image_text_pairs")]
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    content = repr((everything, sorted(tokenizer.items())))
    assert hashlib.sha256(content.encode()).hexdigest() == GOLDEN


def test_pairs_are_the_same_in_shards(tmp_path):
    make_corpus(tmp_path / "parquet", documents=12, seed=1)
    summary = make_corpus(tmp_path / "tar", documents=12, seed=1, pairs_format="webdataset")
    assert summary.documents == {"web_documents": 12, "image_text_pairs": 6}
    (shard,) = (tmp_path / "tar" / "image_text_pairs").iterdir()
    with tarfile.open(shard) as tar:
        contents = [tar.extractfile(member).read() for member in tar]
    expected = [
        content
        for row in rows(tmp_path / "parquet", "image_text_pairs")
        for content in (row["images"][0]["bytes"], row["texts"][1].encode())
    ]
    assert contents == expected


def test_answers_in_conversations_are_right(tmp_path):
    make_corpus(tmp_path, documents=4, seed=1, conversations=60)
    lines = (tmp_path / "conversations" / "part-00000.jsonl").read_text().splitlines()
    assert len(lines) == 60
    for line in lines:
        turns = json.loads(line)["turns"]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert [bool(turn.get("images")) for turn in turns] == [True] + [False] * (len(turns) - 1)
        words = [w for w in re.findall(r"\w+", turns[1]["content"]) if w in NUMBERS]
        assert len(words) == len(turns[0]["images"])
        if "sum" in turns[-2]["content"]:
            assert turns[-1]["content"].endswith(f"{NUMBERS[sum(map(NUMBERS.index, words))]}.")


def test_only_a_corpus_with_conversations_has_a_token_for_the_end_of_a_turn(tmp_path, corpus):
    make_corpus(tmp_path, documents=4, seed=1, conversations=3)
    there, absent = (json.loads((f / "tokenizer.json").read_text()) for f in (tmp_path, corpus))
    assert there["model"]["vocab"][END_OF_UTTERANCE] == 5
    assert END_OF_UTTERANCE not in absent["model"]["vocab"]


@pytest.mark.parametrize(
    ("option", "message"),
    [({"conversations": -1}, "--conversations: -1"), ({"pairs_format": "zip"}, "parquet, webda")],
)
def test_an_option_that_cannot_be_used_is_refused(tmp_path, option, message):
    with pytest.raises(ConfigurationError, match=message):
        make_corpus(tmp_path / "new", documents=4, seed=1, **option)
    assert not (tmp_path / "new").exists()


def test_a_corpus_of_the_same_arguments_is_left_as_it_is(tmp_path):
    summary = make_corpus(tmp_path, documents=6, seed=1)
    before = (tmp_path / "tokenizer.json").stat().st_mtime_ns
    assert make_corpus(tmp_path, documents=6, seed=1) == summary
    assert (tmp_path / "tokenizer.json").stat().st_mtime_ns == before


def test_another_corpus_is_never_overwritten(tmp_path):
    make_corpus(tmp_path, documents=6, seed=1)
    with pytest.raises(ConfigurationError, match="holds another corpus"):
        make_corpus(tmp_path, documents=7, seed=1)


def test_too_few_documents_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="at least 2"):
        make_corpus(tmp_path / "new", documents=1, seed=1)
    assert not (tmp_path / "new").exists()


def test_every_document_fits_the_preset_whole(corpus, tokenizer, make_stream):
    stream = make_stream()
    for position in range(60):
        sample = stream.read(position).sample
        assert tokenizer.special(EOS) in sample.input_ids.tolist()


def test_special_tokens_come_first(tokenizer):
    assert [tokenizer.special(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("content", ["", "{}", '{"arguments": {}, "summary": {"pages": 3}}'])
def test_a_description_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "corpus.json").write_text(content)
    with pytest.raises(ConfigurationError, match="describes no corpus"):
        make_corpus(tmp_path, documents=6, seed=1)

import io
import json
import re

import pyarrow.parquet as pq
import pytest
from PIL import Image

from stabilizer.errors import ConfigurationError
from trainer.data.making import HELDOUT_DOCUMENTS, make_corpus
from trainer.data.making.corpus import NUMBERS
from trainer.data.tokenizer import EOS, SPECIAL_TOKENS


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

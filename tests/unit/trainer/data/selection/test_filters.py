import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from stabilizer.errors import ConfigurationError
from trainer.config import FiltersConfig
from trainer.data.documents import Document, Reason
from trainer.data.selection import DocumentFilter, char_repetition, word_repetition


def png(width, height):
    stream = io.BytesIO()
    Image.new("L", (width, height)).save(stream, format="PNG")
    return stream.getvalue()


def document(*parts, learned=None):
    return Document("web/x.parquet:0", "web", parts, learned)


def judge(page, **limits):
    return DocumentFilter(FiltersConfig(**limits)).judge(page)


def test_without_limits_everything_passes_as_it_is():
    page = document("a " * 1000, b"no picture at all")
    verdict = judge(page)
    assert verdict.document is page
    assert (verdict.rejected, verdict.removed) == ((), ())


@pytest.mark.parametrize(
    ("limits", "page", "reasons"),
    [
        ({"min_words": 4}, document("one two", "three"), [Reason.TOO_FEW_WORDS]),
        ({"min_words": 3}, document("one two", "three"), []),
        ({"max_words": 2}, document("one two", "three"), [Reason.TOO_MANY_WORDS]),
        ({"max_words": 3}, document("one two", "three"), []),
        ({"min_pictures": 1}, document("one"), [Reason.TOO_FEW_PICTURES]),
        ({"max_pictures": 0}, document(b"x"), [Reason.TOO_MANY_PICTURES]),
        ({"max_pictures": 1, "min_words": 1}, document(b"x", b"y"), ["few_words", "many"]),
        ({"max_word_repetition": 0.2, "word_ngram": 2}, document("a b a b"), ["repeated_words"]),
        ({"max_char_repetition": 0.2, "char_ngram": 2}, document("abab"), ["repeated_char"]),
    ],
)
def test_a_document_outside_of_a_limit_is_rejected_with_every_reason(limits, page, reasons):
    rejected = judge(page, **limits).rejected
    assert len(rejected) == len(reasons)
    assert all(part in reason for part, reason in zip(reasons, rejected, strict=True))


@pytest.mark.parametrize(
    ("size", "limits", "stays"),
    [
        ((20, 10), {"min_picture_side": 10}, True),
        ((20, 9), {"min_picture_side": 10}, False),
        ((20, 10), {"max_picture_side": 20}, True),
        ((21, 10), {"max_picture_side": 20}, False),
        ((20, 10), {"max_aspect_ratio": 2.0}, True),
        ((10, 21), {"max_aspect_ratio": 2.0}, False),
    ],
)
def test_a_picture_outside_of_a_limit_is_taken_out_of_its_document(size, limits, stays):
    page = document("before", png(*size), "after")
    verdict = judge(page, **limits)
    assert verdict.document.parts == (page.parts if stays else ("before", "after"))
    assert [skip.reason for skip in verdict.removed] == [Reason.PICTURE_SIZE] * (not stays)
    assert verdict.rejected == ()


def test_what_is_learned_stays_beside_its_part():
    page = document("ask", png(1, 1), "tell", learned=(False, False, True))
    kept = judge(page, min_picture_side=2).document
    assert (kept.parts, kept.learned) == (("ask", "tell"), (False, True))


def test_pictures_are_counted_after_unfit_ones_are_gone():
    page = document(png(1, 1), png(9, 9), "text")
    assert judge(page, min_picture_side=2, min_pictures=2).rejected == (Reason.TOO_FEW_PICTURES,)


def test_a_picture_without_a_header_is_left_to_the_decoder():
    page = document(b"no picture", "text")
    assert judge(page, min_picture_side=2, max_aspect_ratio=2.0).document is page


def test_flagged_words_are_read_from_a_file(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("# not wanted\nCasino  # at all\n\nlotto\n")
    page = document("The best casino, really: CASINO! no lotto", "in town x y")
    assert judge(page, flagged_words=str(file)).rejected == (Reason.FLAGGED_WORDS,)
    assert judge(page, flagged_words=str(file), max_flagged_ratio=0.3).rejected == ()
    assert judge(document("the inn"), flagged_words=str(file)).rejected == ()


def test_a_file_of_flagged_words_that_is_not_there_is_reported():
    with pytest.raises(ConfigurationError, match=r"data\.filters\.flagged_words: /none"):
        DocumentFilter(FiltersConfig(flagged_words="/none"))


@pytest.mark.parametrize("measure", [word_repetition, char_repetition])
def test_repetition_is_nothing_for_what_is_short_and_whole_for_what_repeats(measure):
    assert measure("", 3) == measure("a", 3) == 0.0
    assert measure("a " * 50, 3) == 1.0


def test_half_a_text_repeated_is_half():
    assert word_repetition("a b a b c d", 2) == pytest.approx(2 / 5)
    assert word_repetition("A b a B", 2) == pytest.approx(2 / 3)
    assert char_repetition("ababcd", 2) == pytest.approx(2 / 5)


@given(text=st.text(max_size=60), n=st.integers(1, 12))
def test_repetition_is_a_part(text, n):
    assert 0.0 <= word_repetition(text, n) <= 1.0
    assert 0.0 <= char_repetition(text, n) <= 1.0
    assert char_repetition(text + text, n) >= char_repetition(text, n) or len(text) < n


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"min_words": -1}, "min_words"),
        ({"min_words": 3, "max_words": 2}, "min_words"),
        ({"max_word_repetition": 1.1}, "max_word_repetition"),
        ({"max_char_repetition": float("nan")}, "max_char_repetition"),
        ({"max_aspect_ratio": 0.5}, "max_aspect_ratio"),
        ({"word_ngram": 0}, "word_ngram"),
        ({"min_picture_side": 0}, "min_picture_side"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(limits, field):
    with pytest.raises(ValidationError, match=field):
        FiltersConfig(**limits)

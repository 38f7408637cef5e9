import pytest

from stabilizer.errors import ConfigurationError
from trainer.faults import BadDocuments

SPECIAL = [0, 1, 2]
TEXT = list(range(3, 100))
TOKENS = [1, 10, 11, 0, 12, 13, 14, 15, 2]


def fault(**options):
    given = {"first_sample": 8, "samples": 4, "replacements": TEXT, "seed": 0} | options
    return BadDocuments(**given)


@pytest.mark.parametrize("position", [0, 7, 12, 10**9])
def test_samples_outside_of_the_window_stay_as_they_are(position):
    assert fault()(position, TOKENS) == TOKENS


@pytest.mark.parametrize("position", [8, 11])
def test_text_in_the_window_becomes_garbage_and_special_tokens_stay(position):
    spoiled = fault()(position, TOKENS)
    assert [t for t in spoiled if t in SPECIAL] == [1, 0, 2]
    assert [i for i, t in enumerate(spoiled) if t in SPECIAL] == [0, 3, 8]
    assert spoiled != TOKENS


def test_shuffled_text_keeps_its_words():
    spoiled = fault(kind="shuffled_text")(9, TOKENS)
    assert sorted(spoiled) == sorted(TOKENS)
    assert spoiled != TOKENS


def test_who_reads_a_position_again_reads_the_same_garbage():
    assert fault()(9, TOKENS) == fault()(9, TOKENS)
    assert fault()(9, TOKENS) != fault()(10, TOKENS)
    assert fault()(9, TOKENS) != fault(seed=1)(9, TOKENS)


def test_the_given_tokens_are_not_changed():
    tokens = list(TOKENS)
    fault()(9, tokens)
    assert tokens == TOKENS


def test_a_document_without_text_is_left_alone():
    assert fault()(9, [1, 0, 2]) == [1, 0, 2]


def test_in_the_stream_exactly_the_window_is_bad(make_stream, tokenizer):
    bad = fault(replacements=tokenizer.text_ids)
    good, spoiled = make_stream(), make_stream(fault=bad)
    differ = [
        p for p in range(24) if not good.read(p).sample.labels.equal(spoiled.read(p).sample.labels)
    ]
    assert differ == [8, 9, 10, 11]


@pytest.mark.parametrize("options", [{"samples": 0}, {"first_sample": -1}])
def test_an_impossible_window_is_refused(options):
    with pytest.raises(ValueError, match="BadDocuments"):
        fault(**options)


def test_a_job_that_names_no_tokens_is_refused():
    with pytest.raises(ConfigurationError, match=r"bad_documents\.replacements"):
        fault(replacements=[])(8, TOKENS)

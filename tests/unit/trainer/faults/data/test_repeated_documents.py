import pytest

from trainer.faults import RepeatedDocuments


def test_in_the_window_its_first_documents_come_again_and_again():
    fault = RepeatedDocuments(first_sample=4, samples=5, distinct=2)
    assert [fault(position) for position in range(11)] == [0, 1, 2, 3, 4, 5, 4, 5, 4, 9, 10]


def test_by_default_it_is_one_document():
    fault = RepeatedDocuments(first_sample=0, samples=3)
    assert [fault(position) for position in range(4)] == [0, 0, 0, 3]


@pytest.mark.parametrize(
    "options",
    [{"first_sample": -1}, {"samples": 0}, {"distinct": 0}, {"samples": 3, "distinct": 4}],
)
def test_an_impossible_window_is_refused(options):
    with pytest.raises(ValueError, match="RepeatedDocuments"):
        RepeatedDocuments(**{"first_sample": 0, "samples": 8} | options)

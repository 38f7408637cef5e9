import pytest

from stabilizer.errors import ConfigurationError
from trainer.inspection import parse_window


def test_a_window_is_from_to_without_the_end():
    window = parse_window(" 96:106 ", "step")
    assert (window.start, window.end, str(window)) == (96, 106, "steps 96 to 105")
    assert [n in window for n in (95, 96, 105, 106)] == [False, True, True, False]


def test_steps_are_the_samples_that_they_read():
    assert parse_window("1:3", "step").samples(8) == range(16)
    assert parse_window("5:7", "sample").samples(8) == range(5, 7)


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        ("", "step", "FROM:TO"),
        ("3", "step", "FROM:TO"),
        ("3:3", "step", "below"),
        ("5:3", "sample", "below"),
        ("-1:3", "sample", "FROM:TO"),
        ("0:3", "step", "at least 1"),
        ("a:b", "step", "FROM:TO"),
        ("0:200000", "sample", "at most 100000"),
        ("1:9999999999999999", "sample", "FROM:TO"),
        ("1:3", "epoch", "step, sample"),
    ],
)
def test_what_is_no_window_is_refused(text, unit, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_window(text, unit)

"""Plays tests/replay/cases/*.yaml as `stabilizer rules test` does; compares all that happened."""

import math
from pathlib import Path

import numpy as np
import pytest

from stabilizer.replay.cases import load_cases, parse_series

CASES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case_goes_as_written(path):
    (case,) = load_cases(path)
    assert case.difference(case.play(), strict=True) == []


def test_there_are_cases():
    assert len(CASES) >= 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5x2 _ 3", [1.5, 1.5, None, 3.0]),
        ("1+0.5x3", [1.0, 1.5, 2.0]),
        ("1-0.5x3", [1.0, 0.5, 0.0]),
        ("1*2x4", [1.0, 2.0, 4.0, 8.0]),
        ("inf -inf", [math.inf, -math.inf]),
        ("2 +0.5x3", [2.0, 2.5, 3.0, 3.5]),
        ("2 +-0.5x2 *2x2", [2.0, 1.5, 1.0, 2.0, 4.0]),
        ("-1.5x2 1e-3", [-1.5, -1.5, 0.001]),
        ("2 _x2 +1", [2.0, None, None, 3.0]),
    ],
)
def test_notation(text, expected):
    assert parse_series(text) == expected


def test_notation_of_nan_and_noise():
    assert math.isnan(parse_series("nan")[0])
    noisy = parse_series("2x100~0.1")
    assert noisy == parse_series("2x100~0.1")
    assert 0.05 < float(np.std(noisy)) < 0.2


@pytest.mark.parametrize("text", ["1..2", "+0.1x3", "x5", "~0.1", "1x9999999", "two"])
def test_notation_that_is_none(text):
    with pytest.raises(ValueError, match=r"series|last value"):
        parse_series(text)

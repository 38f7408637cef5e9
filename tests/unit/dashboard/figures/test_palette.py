from itertools import combinations

import numpy as np
import pytest

from dashboard.figures.palette import (
    BLUE,
    DIVERGING,
    GREY,
    LINE_COLOURS,
    NONFINITE,
    SEQUENTIAL,
    SEVERITY_COLOURS,
    VERMILION,
    line_colour,
    veil,
)
from stabilizer.protocol.decisions import Severity

GROUNDS = ("#ffffff", "#1a1b1e")
VEIL = 0.18
# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def channels(colour):
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)], dtype=float)


def linear(colour):
    part = channels(colour) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    low, high = sorted(float(linear(colour) @ TO_XYZ[1]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(light):
    scaled = TO_XYZ @ light / np.array([0.95047, 1, 1.08883])
    x, y, z = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one, other, sight):
    seen = [lab(np.clip(SIGHTS[sight] @ linear(colour), 0, 1)) for colour in (one, other)]
    return float(np.linalg.norm(seen[0] - seen[1]))


def mixed(one, other, share):
    parts = channels(one) + (channels(other) - channels(one)) * share
    return "#" + "".join(f"{round(part):02x}" for part in parts)


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize(
    "colour", sorted({*LINE_COLOURS, *SEVERITY_COLOURS.values(), NONFINITE, GREY})
)
def test_every_colour_is_read_on_both_grounds(colour, ground):
    assert contrast(colour, ground) >= 3


@pytest.mark.parametrize("sight", SIGHTS)
def test_lines_are_distinguishable_with_any_colour_vision(sight):
    # 2.3 is just noticeable side by side.
    assert min(distance(one, other, sight) for one, other in combinations(LINE_COLOURS, 2)) > 10


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("ground", GROUNDS)
def test_no_scale_contains_the_colour_of_nan(ground, sight):
    middle = mixed(ground, "#808080", VEIL)
    scale = [
        mixed(middle, end, share) for end in (BLUE, VERMILION) for share in np.linspace(0, 1, 11)
    ]
    assert min(distance(NONFINITE, colour, sight) for colour in [ground, *scale]) > 18


def test_the_scales_are_made_of_the_colours_that_were_compared():
    assert [colour for _, colour in DIVERGING] == [BLUE, veil("#808080", VEIL), VERMILION]
    assert SEQUENTIAL[-1][1] == veil(BLUE, 1)


def test_every_severity_has_a_colour_of_its_own():
    assert set(SEVERITY_COLOURS) == set(Severity)
    assert len(set(SEVERITY_COLOURS.values())) == len(Severity)


def test_colours_repeat_cyclically():
    assert line_colour(len(LINE_COLOURS) + 1) == line_colour(1) == LINE_COLOURS[1]


def test_a_veil_keeps_the_colour():
    assert veil("#0072B2", 0.25) == "rgba(0,114,178,0.25)"

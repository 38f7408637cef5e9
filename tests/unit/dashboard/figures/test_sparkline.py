import math
import re
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from dashboard.figures.palette import NONFINITE
from dashboard.figures.sparkline import HEIGHT, WIDTH, sparkline_text, sparkline_uri
from stabilizer.protocol.views import Sparkline

SVG = "{http://www.w3.org/2000/svg}"


def picture(values, steps=None):
    line = None
    if values is not None:
        line = Sparkline(steps=tuple(steps or range(len(values))), values=tuple(values))
    uri = sparkline_uri(line)
    head, body = uri.split(",", 1)
    assert head == "data:image/svg+xml"
    assert not set('<>"#') & set(body)
    return ElementTree.fromstring(unquote(body))


def heights_of(path):
    return [float(y) for y in re.findall(r"[ML][\d.-]+ ([\d.-]+)", path.get("d"))]


def test_a_loss_is_a_line_with_a_dot_at_its_end():
    svg = picture([3, 2, 1])
    (line,) = svg.findall(f"{SVG}path")
    dot = svg.find(f"{SVG}circle")
    assert line.get("d").count("L") == 2
    assert float(dot.get("cx")) == WIDTH - 3
    assert float(dot.get("cy")) == HEIGHT - 3


@pytest.mark.parametrize("values", [None, [], [5.0], [math.nan], [2.0, 2.0], [math.nan] * 3])
def test_odd_losses_are_pictures_too(values):
    svg = picture(values)
    assert (svg.get("width"), svg.get("height")) == (str(WIDTH), str(HEIGHT))
    assert svg.find(f"{SVG}title").text


def test_a_nan_breaks_the_line_and_is_marked():
    svg = picture([3, math.nan, 2, 1])
    line, marks = svg.findall(f"{SVG}path")
    assert line.get("d").count("M") == 2
    assert marks.get("stroke") == NONFINITE


def test_a_run_that_ends_in_nan_has_no_dot():
    assert picture([3, 2, math.nan]).find(f"{SVG}circle") is None


def test_spike_is_clipped():
    svg = picture([2.0, 3.0] * 20 + [1e9] + [2.0, 3.0] * 20)
    heights = heights_of(svg.find(f"{SVG}path"))
    assert len(heights) == 81
    assert min(heights) >= 0
    assert max(heights) <= HEIGHT


def test_text_names_the_last_value_and_non_finite_points():
    line = Sparkline(steps=(10, 2000, 3000), values=(11.0, math.nan, 2.51))
    assert (
        sparkline_text(line)
        == "loss 2.51 at step 3,000, 11 at step 10; 1 of 3 points are NaN or Inf"
    )
    assert sparkline_text(None) == "no loss yet"

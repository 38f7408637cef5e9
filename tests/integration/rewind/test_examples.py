"""Every example of the documentation runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_trains(path):
    main = runpy.run_path(str(path))["main"]
    losses = [float(loss) for loss in main(steps=30)]
    assert len(losses) == 30
    assert losses[-1] < 0.8 * losses[0]
    assert len(path.read_text().splitlines()) <= 45

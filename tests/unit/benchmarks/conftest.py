"""Models of one block of width 16: what is tested of the laboratory does not depend on the size."""

from dataclasses import replace

import pytest

from benchmarks.lab.families import FAMILIES, Size


@pytest.fixture(scope="session", autouse=True)
def _small_models():
    with pytest.MonkeyPatch.context() as patch:
        for name, family in FAMILIES.items():
            patch.setitem(FAMILIES, name, replace(family, sizes=(Size(16, 1, 2),), batch=4))
        yield

"""A small corpus for whole jobs, and their configurations."""

import pytest

from tests.small_model import SMALL_MODEL
from trainer.config import load_config
from trainer.data.making import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, documents=40, seed=0)
    return folder


@pytest.fixture
def make_config(corpus, tmp_path, knobs):
    """Return a function that builds a configuration; a test file gives the `knobs` of its own."""

    def make(out="out", **fields):
        given = {name.replace("__", "."): value for name, value in fields.items()}
        base = {"data.folder": str(corpus), "training.out": str(tmp_path / out)}
        return load_config("idefics-tiny", fields=SMALL_MODEL | base | knobs | given)

    return make

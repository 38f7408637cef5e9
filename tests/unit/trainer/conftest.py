"""A small corpus, and configurations of models that train in milliseconds."""

from __future__ import annotations

import pytest

from tests.small_model import SMALL_MODEL
from trainer.config import load_config
from trainer.data import collate, load_tokenizer, open_training_stream
from trainer.data.making import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, documents=30, seed=3)
    return folder


@pytest.fixture
def make_config(corpus, tmp_path):
    """Return a function that builds a small configuration from dotted fields."""

    def make(**fields):
        base = SMALL_MODEL | {
            "training.steps": 8,
            "data.folder": str(corpus),
            "training.out": str(tmp_path / "out"),
        }
        given = {name.replace("__", "."): value for name, value in fields.items()}
        return load_config("idefics-tiny", fields=base | given)

    return make


@pytest.fixture
def tokenizer(corpus):
    return load_tokenizer(corpus)


@pytest.fixture
def make_stream(make_config, tokenizer):
    """Return a function that opens the training stream of the corpus."""

    def make(seed=0, fault=None, **fields):
        config = make_config(**fields)
        return open_training_stream(
            config.data,
            tokenizer,
            image_size=config.model.vision.image_size,
            seed=seed,
            fault=fault,
        )

    return make


@pytest.fixture
def make_batch(make_stream):
    """Return a function that reads the first samples of the stream as one batch."""

    def make(size=4, first=0, **fields):
        stream = make_stream(**fields)
        return collate([stream.read(first + i) for i in range(size)])

    return make

"""A small corpus, and configurations of models that train in milliseconds."""

from __future__ import annotations

import pytest

from trainer.config import load_config
from trainer.data import collate, load_tokenizer, open_training_stream
from trainer.data.making import make_corpus

SMALL_MODEL = {
    "model.hidden_size": 32,
    "model.intermediate_size": 48,
    "model.layers": 2,
    "model.heads": 2,
    "model.cross_attention_every": 1,
    "model.vision.hidden_size": 16,
    "model.vision.intermediate_size": 32,
    "model.vision.layers": 1,
    "model.vision.heads": 2,
    "model.resampler.latents": 2,
    "model.resampler.layers": 1,
    "model.resampler.heads": 2,
    "model.resampler.head_size": 8,
    "data.batch_size": 4,
    "optimizer.warmup_steps": 2,
    "training.steps": 8,
}


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

"""Documents, their order, and how they become batches."""

from trainer.data.batches import Batch, collate
from trainer.data.building import open_heldout_stream, open_training_stream
from trainer.data.loader import StaleIteratorError, StreamLoader
from trainer.data.stream import DocumentStream
from trainer.data.tokenizer import PAD, CorpusTokenizer, load_tokenizer

__all__ = [
    "PAD",
    "Batch",
    "CorpusTokenizer",
    "DocumentStream",
    "StaleIteratorError",
    "StreamLoader",
    "collate",
    "load_tokenizer",
    "open_heldout_stream",
    "open_training_stream",
]

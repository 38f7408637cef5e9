"""Documents, their order, and how they become batches."""

from trainer.data.building import (
    open_heldout_stream,
    open_reader,
    open_tokenizer,
    open_training_stream,
)
from trainer.data.documents import BadDocumentError, Document, Reason
from trainer.data.loader import StaleIteratorError, StreamLoader, TrainingBatch, collate
from trainer.data.reading import DocumentReader, StreamFaults
from trainer.data.stream import DocumentStream, SampleStream
from trainer.data.tokenizer import PAD, CorpusTokenizer, load_tokenizer

__all__ = [
    "PAD",
    "BadDocumentError",
    "CorpusTokenizer",
    "Document",
    "DocumentReader",
    "DocumentStream",
    "Reason",
    "SampleStream",
    "StaleIteratorError",
    "StreamFaults",
    "StreamLoader",
    "TrainingBatch",
    "collate",
    "load_tokenizer",
    "open_heldout_stream",
    "open_reader",
    "open_tokenizer",
    "open_training_stream",
]

"""Data that is bad by itself: functions of the position in the stream, and files."""

from trainer.faults.data.bad_documents import BadDocuments
from trainer.faults.data.corrupted_shard import corrupt_file, show_corrupted_corpus
from trainer.faults.data.repeated_documents import RepeatedDocuments

__all__ = ["BadDocuments", "RepeatedDocuments", "corrupt_file", "show_corrupted_corpus"]

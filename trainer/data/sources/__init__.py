"""Sources of documents: files of several formats, local or remote, read by document number."""

from trainer.data.sources.conversations import ConversationSource
from trainer.data.sources.files import StoredFile, is_relative, list_files
from trainer.data.sources.parquet import ParquetSource
from trainer.data.sources.tars import TarSource

__all__ = [
    "ConversationSource",
    "ParquetSource",
    "StoredFile",
    "TarSource",
    "is_relative",
    "list_files",
]

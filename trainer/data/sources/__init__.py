"""Where documents are from: files of a kind, wherever they are, and documents by number."""

from trainer.data.sources.files import StoredFile, is_relative, list_files
from trainer.data.sources.parquet import ParquetSource

__all__ = ["ParquetSource", "StoredFile", "is_relative", "list_files"]

"""Writing small corpora, seeded."""

from trainer.data.making.writing import HELDOUT_DOCUMENTS, CorpusSummary, make_corpus

__all__ = ["HELDOUT_DOCUMENTS", "CorpusSummary", "make_corpus"]

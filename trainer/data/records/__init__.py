"""What was read, written down while a job trains."""

from trainer.data.records.ledger import LEDGER_FOLDER, Ledger, LedgerEntry, read_ledger
from trainer.data.records.recording import StreamRecorder

__all__ = ["LEDGER_FOLDER", "Ledger", "LedgerEntry", "StreamRecorder", "read_ledger"]

"""Inspection of the documents of a run: losses, filters, and pictures."""

from trainer.inspection.findings import Finding
from trainer.inspection.report import write_report
from trainer.inspection.run_folder import Occurrence, RunFolder, Window, parse_window

__all__ = ["Finding", "Occurrence", "RunFolder", "Window", "parse_window", "write_report"]

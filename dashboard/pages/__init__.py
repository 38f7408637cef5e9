"""Initial layouts of the pages, and builders of the parts that callbacks fill in."""

from dashboard.pages.control import control
from dashboard.pages.run import run
from dashboard.pages.runs import runs
from dashboard.pages.shell import not_found, shell

__all__ = ["control", "not_found", "run", "runs", "shell"]

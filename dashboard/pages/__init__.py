"""The pages as they are before anything is known: every part that callbacks fill has its place."""

from dashboard.pages.control import control
from dashboard.pages.not_found import not_found
from dashboard.pages.run import run
from dashboard.pages.runs import runs
from dashboard.pages.shell import shell

__all__ = ["control", "not_found", "run", "runs", "shell"]

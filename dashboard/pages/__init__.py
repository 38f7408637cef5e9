"""The pages as they are before anything is known: every part that callbacks fill has its place."""

from dashboard.pages.control import control
from dashboard.pages.run import run
from dashboard.pages.runs import runs
from dashboard.pages.shell import not_found, shell

__all__ = ["control", "not_found", "run", "runs", "shell"]

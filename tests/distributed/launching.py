"""Runs a script as one rank; in a module of its own, since a started process imports it."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import warnings


def run_script(script, arguments, environment, log):
    """Run a script as a new interpreter would, with its output in a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own
    warnings.simplefilter("ignore")
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")

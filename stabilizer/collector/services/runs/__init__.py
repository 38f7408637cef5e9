"""Runs: registered, heard of, lost and deleted."""

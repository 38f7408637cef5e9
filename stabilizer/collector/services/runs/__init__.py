"""Runs: registration, attempts, heartbeats, loss and deletion."""

"""Logs of training jobs that others wrote: read as what the agent would have sent."""

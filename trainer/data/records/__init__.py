"""What was read, written down while a job trains."""

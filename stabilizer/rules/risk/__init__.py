"""The probability that a run does not recover by itself."""

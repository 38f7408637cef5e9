"""The brain: series in, decisions out. Pure: no I/O, no clock, no randomness."""

"""Kinds of rules beside those on the samples of series: ratios, absence, wall-clock time."""

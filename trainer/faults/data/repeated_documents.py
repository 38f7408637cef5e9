"""A window of the stream in which the same few documents come again and again."""

from __future__ import annotations


class RepeatedDocuments:
    """Says which position is read for a position: in the window, one of its first `distinct`.

    The data is what is bad, so the fault is a function of the position alone: whoever reads the
    position again reads the same document, whoever skips it never does.
    """

    def __init__(self, *, first_sample: int, samples: int, distinct: int = 1) -> None:
        """Describe the window.

        Args:
            first_sample: Position of the first document of the window.
            samples: Documents in the window.
            distinct: How many of them are different.

        Raises:
            ValueError: The window is empty or begins before 0, or has fewer documents.
        """
        if first_sample < 0 or samples < 1 or not 1 <= distinct <= samples:
            raise ValueError(
                f"repeated documents: first_sample={first_sample}, samples={samples}, "
                f"distinct={distinct}; allowed: a window from 0 on, and 1 to `samples` documents"
            )
        self._window = range(first_sample, first_sample + samples)
        self._distinct = distinct

    def __call__(self, position: int) -> int:
        """Return the position whose document is read."""
        if position not in self._window:
            return position
        first = self._window.start
        return first + (position - first) % self._distinct

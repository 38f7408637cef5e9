"""When a new level is accepted: after so many flagged samples in a row it is no longer an anomaly.

Without it a detector that learns no flagged sample would flag a legitimate new level forever. A
phase change that the job announces is accepted at once, by `Detector.forget`.
"""

from __future__ import annotations

import numpy as np

from stabilizer.rules.detectors.interface import BoolArray, State


class Patience:
    """Counts flagged samples in a row of every series."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._streak = np.empty(0, np.int64)

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        missing = max(0, num_series - len(self._streak))
        self._streak = np.concatenate([self._streak, np.zeros(missing, np.int64)])

    def spend(self, known: BoolArray, flagged: BoolArray) -> BoolArray | None:
        """Count a verdict; return the series whose new level is now accepted, None if none is."""
        streak = self._streak
        if not flagged.any():
            streak[known] = 0
            return None
        streak[known & ~flagged] = 0
        streak[flagged] += 1
        accepted = streak >= self.limit
        if not accepted.any():
            return None
        streak[accepted] = 0
        return accepted

    def clear(self) -> None:
        """Begin to count anew."""
        self._streak[:] = 0

    def state(self) -> State:
        """Return the counts."""
        return {"patience": self._streak}

    def load(self, state: State) -> None:
        """Take over the counts."""
        self._streak = np.array(state["patience"], np.int64)

"""The log book of a run: what happened, why, and who did it."""

from __future__ import annotations

from dashboard.components.timeline.build import build_timeline
from dashboard.components.timeline.entry import Entry, EntryKind
from dashboard.components.timeline.view import timeline

__all__ = ["Entry", "EntryKind", "build_timeline", "timeline"]

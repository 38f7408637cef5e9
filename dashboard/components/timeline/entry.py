"""One thing that happened to a run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class EntryKind(StrEnum):
    """Whose doing it is."""

    SEEN = "seen"
    """A rule fired."""
    DECIDED = "decided"
    """The policy decided on an incident."""
    ORDERED = "ordered"
    """A command was given or approved."""
    DONE = "done"
    """The job carried a command out."""
    REFUSED = "refused"
    """A command came to nothing."""
    JOB = "job"
    """The job told of itself, or fell silent."""
    SETTING = "setting"
    """A person or the collector changed how the run is judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of the log book.

    What comes from a job (messages, series, names) is text and nothing but text.
    """

    key: str
    """Names the entry for as long as it exists: letters, digits and hyphens."""
    kind: EntryKind
    title: str
    text: str = ""
    actor: str = ""
    """`policy`, `job`, `collector` or `person:<name>`."""
    at: datetime | None = None
    """None: no clock has seen it, only a step."""
    attempt: int | None = None
    step: int | None = None
    tone: str = "gray"
    """A colour of the theme, by name."""
    command_id: str | None = None
    incident_id: str | None = None
    details: tuple[tuple[str, str], ...] = ()
    """Named facts that stand behind a click."""
    words: str = ""
    """What the job said, as it said it."""

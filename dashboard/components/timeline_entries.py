"""One thing that happened to a run."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias

from stabilizer.protocol.decisions import Decision
from stabilizer.protocol.queries import AuditAction, AuditEntry


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
class TimelineEntry:
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


_DecisionKey: TypeAlias = tuple[str, str, str, str, str]


class AuditIndex:
    """Finds audit entries by what they are about; each is taken once.

    What nobody takes is left for `rest`, so that nothing is lost if another source is incomplete.
    """

    def __init__(self, audit: Sequence[AuditEntry]) -> None:
        self._entries = {entry.id: entry for entry in sorted(audit, key=lambda entry: entry.id)}
        self._decisions: defaultdict[_DecisionKey, deque[AuditEntry]] = defaultdict(deque)
        self._by_subject: defaultdict[str, list[AuditEntry]] = defaultdict(list)
        for entry in self._entries.values():
            self._by_subject[entry.subject].append(entry)
            if entry.action is AuditAction.DECISION_MADE and entry.after is not None:
                key = (
                    entry.subject,
                    str(entry.after.get("kind")),
                    str(entry.after.get("attempt")),
                    str(entry.after.get("step")),
                    entry.reason.value,
                )
                self._decisions[key].append(entry)
        self._left = dict(self._entries)

    def take_decision(self, incident_id: str, decision: Decision) -> AuditEntry | None:
        """Take the entry of a decision; None if the log does not reach back to it."""
        key = (
            incident_id,
            decision.kind.value,
            str(decision.attempt),
            str(decision.step),
            decision.reason.value,
        )
        waiting = self._decisions.get(key)
        return self._take(waiting.popleft()) if waiting else None

    def take(self, action: AuditAction, subject: str | None = None) -> Iterator[AuditEntry]:
        """Take the entries of an action, oldest first; those about `subject` only, if given."""
        about = self._entries.values() if subject is None else self._by_subject.get(subject, ())
        for entry in list(about):
            if entry.action is action and entry.id in self._left:
                yield self._take(entry)

    def decided_commands(self) -> set[str | None]:
        """Return the ids of the commands that decisions name."""
        return {
            str(entry.after["command_id"])
            for entry in self._entries.values()
            if entry.action is AuditAction.DECISION_MADE
            and entry.after is not None
            and entry.after.get("command_id") is not None
        }

    def changed_at(self, incident_id: str) -> frozenset[datetime]:
        """Return when decisions were made on an incident."""
        return frozenset(
            entry.at
            for entry in self._by_subject.get(incident_id, ())
            if entry.action is AuditAction.DECISION_MADE
        )

    def rest(self) -> list[AuditEntry]:
        """Return what nobody has taken, oldest first."""
        return list(self._left.values())

    def _take(self, entry: AuditEntry) -> AuditEntry:
        self._left.pop(entry.id, None)
        return entry

"""Entries of the timeline, and the index of audit entries that they are built from."""

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
    """What an entry is about."""

    SEEN = "seen"
    """A rule fired."""
    DECIDED = "decided"
    """The policy decided on an incident."""
    ORDERED = "ordered"
    """A command was sent, approved or delivered."""
    DONE = "done"
    """The job applied a command."""
    REFUSED = "refused"
    """A command ended without being applied."""
    JOB = "job"
    """The job reported an event, or its heartbeat stopped."""
    SETTING = "setting"
    """A setting of the run or of the collector changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimelineEntry:
    """One entry of the timeline. Text from jobs is shown as plain text."""

    key: str
    """Stable id: letters, digits, hyphens and underscores."""
    kind: EntryKind
    title: str
    text: str = ""
    actor: str = ""
    """`policy`, `job`, `collector` or `person:<name>`."""
    at: datetime | None = None
    """None: only the step is known."""
    attempt: int | None = None
    step: int | None = None
    tone: str = "gray"
    """A colour of the theme, by name."""
    command_id: str | None = None
    incident_id: str | None = None
    details: tuple[tuple[str, str], ...] = ()
    """Names and values, shown on request."""
    job_message: str = ""
    """Message of the job, verbatim."""


_DecisionKey: TypeAlias = tuple[str, str, str, str, str]


class AuditIndex:
    """Finds audit entries by subject and action; each is taken once.

    `rest` returns the remaining ones, so that nothing is lost if another source is incomplete.
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
        """Take the entry of a decision; None if the log does not contain it."""
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
        """Take the entries of an action, oldest first, optionally only those of `subject`."""
        about = self._entries.values() if subject is None else self._by_subject.get(subject, ())
        for entry in list(about):
            if entry.action is action and entry.id in self._left:
                yield self._take(entry)

    def decided_commands(self) -> set[str | None]:
        """Return the ids of the commands that decisions created."""
        return {
            str(entry.after["command_id"])
            for entry in self._entries.values()
            if entry.action is AuditAction.DECISION_MADE
            and entry.after is not None
            and entry.after.get("command_id") is not None
        }

    def changed_at(self, incident_id: str) -> frozenset[datetime]:
        """Return the times of decisions on an incident."""
        return frozenset(
            entry.at
            for entry in self._by_subject.get(incident_id, ())
            if entry.action is AuditAction.DECISION_MADE
        )

    def rest(self) -> list[AuditEntry]:
        """Return the remaining entries, oldest first."""
        return list(self._left.values())

    def _take(self, entry: AuditEntry) -> AuditEntry:
        self._left.pop(entry.id, None)
        return entry

"""The audit logs that pages ask for: they only grow, so what is known is not read again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from stabilizer.protocol.queries import AuditEntry, AuditPage

MOST_ENTRIES: Final = 5000
"""Of a longer log the oldest entries are left out."""
_MOST_LOGS: Final = 16


class AuditLogs:
    """Keeps the logs that were asked for last.

    They are shared by everybody. Each reading asks the collector for what is new all the same, and
    for the newest entry that is known: so a token that it does not take gets nothing, and a
    collector that has begun another log is noticed.
    """

    def __init__(self) -> None:
        self._logs: OrderedDict[str, list[AuditEntry]] = OrderedDict()

    async def read(self, path: str, ask: Callable[[int], Awaitable[AuditPage]]) -> list[AuditEntry]:
        """Return the newest entries of a log, oldest first.

        Args:
            path: Of the log.
            ask: Gives the page behind an id.

        Raises:
            DashboardError: Whatever `ask` raises.
        """
        known = self._logs.get(path, [])
        found = await _read_behind(known[-1].id - 1 if known else 0, ask)
        if known and not (found and _is_same(known[-1], found[0])):
            known, found = [], await _read_behind(0, ask)
        log = [*known[:-1], *found][-MOST_ENTRIES:]
        self._logs[path] = log
        self._logs.move_to_end(path)
        while len(self._logs) > _MOST_LOGS:
            self._logs.popitem(last=False)
        return list(log)


async def _read_behind(after: int, ask: Callable[[int], Awaitable[AuditPage]]) -> list[AuditEntry]:
    found: list[AuditEntry] = []
    next_after: int | None = after
    while next_after is not None:
        page = await ask(next_after)
        found = [*found, *page.entries][-MOST_ENTRIES - 1 :]  # one of them may be known
        next_after = page.next_after
    return found


def _is_same(one: AuditEntry, other: AuditEntry) -> bool:
    return (one.id, one.at, one.subject) == (other.id, other.at, other.subject)

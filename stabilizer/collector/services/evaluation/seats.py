"""Brains in memory: saved with what they decide, rebuilt from the database when they are lost.

A brain is pure, and so can always be made again: the last saved state, then the batches that came
after it. The state is saved in the transaction of every event that is not a frame, of every frame
that changed something, and every 64 steps. What lies behind a saved state are therefore only frames
on which the rules had nothing to say, under the circumstances that were saved with it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from stabilizer.collector.services.evaluation.context import dump_context, load_context
from stabilizer.collector.services.evaluation.recorder import Origin
from stabilizer.collector.services.evaluation.stepping import Place, frames_by_step, is_new
from stabilizer.collector.services.unit_of_work import RunTransaction
from stabilizer.collector.storage.models import BrainStateRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.errors import StorageError
from stabilizer.protocol.batches import Marker
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.series import Catalog
from stabilizer.rules.brain import Brain
from stabilizer.rules.loader import RuleFile
from stabilizer.rules.outcome import Outcome, PolicyContext

SAVE_EVERY_STEPS: Final = 64
MAX_SEATS: Final = 256
"""Brains in memory; the one unused for longest makes room, and is rebuilt when needed."""
MAX_CATALOGS: Final = 512
"""Catalogs in memory; most runs share theirs with other runs of the same model."""


@dataclass(slots=True)
class Seat:
    """A brain with what the database must know of it."""

    brain: Brain
    origin: Origin
    version: int
    """The run's version that it stands at."""
    context: PolicyContext
    seen: dict[str, int]
    """Last step that the rules saw, by catalog."""
    steps_since_save: int = 0
    is_dirty: bool = False
    """Must be saved in this transaction."""
    healthy: tuple[str, ...] = ()
    """Snapshots held to be healthy when the last transaction on the run ended."""


class Contexts(Protocol):
    """Where the policy's circumstances come from."""

    def at(self, step: int) -> PolicyContext:
        """Return what holds at a step."""
        ...


Recording = Callable[[Outcome], None]
"""What becomes of an outcome; called in the order in which they happen."""


class SeatCache:
    """The seats in memory, the least used of them last to go. Safe for many threads."""

    def __init__(self) -> None:
        self._seats: OrderedDict[str, Seat] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, run_id: str) -> Seat | None:
        """Return a run's seat, if it is in memory."""
        with self._guard:
            seat = self._seats.get(run_id)
            if seat is not None:
                self._seats.move_to_end(run_id)
            return seat

    def put(self, run_id: str, seat: Seat) -> None:
        """Keep a run's seat."""
        with self._guard:
            self._seats[run_id] = seat
            self._seats.move_to_end(run_id)
            while len(self._seats) > MAX_SEATS:
                self._seats.popitem(last=False)

    def all(self) -> list[Seat]:
        """Return the seats in memory."""
        with self._guard:
            return list(self._seats.values())

    def drop(self, run_id: str) -> None:
        """Forget a run's seat."""
        with self._guard:
            self._seats.pop(run_id, None)


class CatalogCache:
    """Catalogs by id; they never change. Safe for many threads."""

    def __init__(self) -> None:
        self._catalogs: OrderedDict[str, Catalog] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, repos: Repositories, catalog_id: str) -> Catalog:
        """Return a stored catalog."""
        with self._guard:
            catalog = self._catalogs.get(catalog_id)
        if catalog is None:
            catalog = repos.catalogs.load(catalog_id)
            with self._guard:
                self._catalogs[catalog_id] = catalog
                while len(self._catalogs) > MAX_CATALOGS:
                    self._catalogs.popitem(last=False)
        return catalog


def show_batch(
    seat: Seat,
    blocks: Sequence[FrameBlock],
    markers: Sequence[Marker],
    contexts: Contexts,
    record: Recording,
) -> None:
    """Let a brain see a batch: of each step its markers, then all catalogs, then the policy.

    Args:
        seat: Whose brain.
        blocks: Frames; those of steps gone by are left out.
        markers: Events; each comes before the first frame at or after its step.
        contexts: What the policy is told at each step.
        record: Takes each outcome that says something.
    """
    waiting = sorted(markers, key=lambda marker: marker.step, reverse=True)
    for step, places in frames_by_step(blocks):
        while waiting and waiting[-1].step <= step:
            seat.brain.marker(waiting.pop())
        if _observe(seat, step, places, record):
            _decide(seat, step, contexts, record)
    for marker in reversed(waiting):
        seat.brain.marker(marker)


def _observe(seat: Seat, step: int, places: Sequence[Place], record: Recording) -> bool:
    """Show what is new of a step; return whether anything was."""
    any_new = False
    for block, index in places:
        if not is_new(seat.seen, block.catalog, step):
            continue
        present = None if block.present is None else block.present[index]
        outcome = seat.brain.observe(block.catalog, step, block.values[index], present)
        seat.seen[block.catalog] = step
        any_new = True
        _take(seat, outcome, record)
    return any_new


def _decide(seat: Seat, step: int, contexts: Contexts, record: Recording) -> None:
    context = contexts.at(step)
    if context != seat.context:
        seat.context, seat.is_dirty = context, True
    _take(seat, seat.brain.decide(step, context), record)
    seat.steps_since_save += 1


def _take(seat: Seat, outcome: Outcome, record: Recording) -> None:
    if outcome:
        seat.is_dirty = True
        record(outcome)


def restore_seat(
    tx: RunTransaction, row: BrainStateRow, rules: RuleFile, catalogs: CatalogCache
) -> Seat:
    """Build a seat from its saved state, without the batches behind it.

    Raises:
        ConfigurationError: The state was saved by other rules or by another version of them.
    """
    brain = Brain(rules)
    for catalog_id in tx.repos.catalogs.of_run(tx.run.id):
        brain.add_catalog(catalogs.get(tx.repos, catalog_id))
    brain.load_state(row.state)
    return Seat(
        brain=brain,
        origin=Origin(row.generation, row.incident_offset, row.rules_hash),
        version=tx.run.version,
        context=load_context(row.context),
        seen={catalog: int(step) for catalog, step in row.seen.items()},
    )


def save_seat(tx: RunTransaction, seat: Seat) -> None:
    """Write a seat's state as of the run's version."""
    row = tx.repos.rules.state(tx.run.id)
    is_first = row is None
    if row is None:
        row = BrainStateRow(run_id=tx.run.id)
    row.rules_hash = seat.origin.rules_hash
    row.generation = seat.origin.generation
    row.incident_offset = seat.origin.incident_offset
    row.version = tx.run.version
    row.state = seat.brain.state_dict()
    row.context = dump_context(seat.context)
    row.seen = dict(seat.seen)
    if is_first:
        tx.repos.rules.add_state(row)
    seat.steps_since_save, seat.is_dirty = 0, False


def saved_state(tx: RunTransaction) -> BrainStateRow:
    """Return the saved state of a run.

    Raises:
        StorageError: There is none, although every registration writes one.
    """
    row = tx.repos.rules.state(tx.run.id)
    if row is None:
        raise StorageError(f"run {tx.run.id} has no saved state of its rules")
    return row

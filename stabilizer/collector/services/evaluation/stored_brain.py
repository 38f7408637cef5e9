"""Brains of runs: cached in memory, saved with what they decide, restored from the database.

A brain is pure, so it can always be rebuilt: the last saved state, then the batches after it. The
state is saved in the transaction of every event that is not a frame, of every frame that changed
something, and every 64 steps. After a saved state there are therefore only frames on which the
rules decided nothing, in the context that was saved with it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from stabilizer.collector.services.evaluation.recorder import Origin
from stabilizer.collector.services.unit_of_work import RunTransaction
from stabilizer.collector.storage.models import BrainStateRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.errors import StorageError
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.series import Catalog
from stabilizer.rules.brain import Brain
from stabilizer.rules.loaded_brain import LoadedBrain
from stabilizer.rules.loader import RuleFile
from stabilizer.rules.outcome import PolicyContext

SAVE_EVERY_STEPS: Final = 64
MAX_BRAINS: Final = 256
"""Brains in memory; the least recently used is dropped, and restored on demand."""
MAX_CATALOGS: Final = 512
"""Catalogs in memory; most runs share theirs with other runs of the same model."""


@dataclass(slots=True, kw_only=True)
class StoredBrain(LoadedBrain):
    """A loaded brain with its place in the database."""

    origin: Origin
    version: int
    """The run's version up to which it has seen the run."""


class BrainCache:
    """Brains by run, least recently used dropped first. Thread-safe."""

    def __init__(self) -> None:
        self._brains: OrderedDict[str, StoredBrain] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, run_id: str) -> StoredBrain | None:
        """Return a run's brain, if it is in memory."""
        with self._guard:
            loaded = self._brains.get(run_id)
            if loaded is not None:
                self._brains.move_to_end(run_id)
            return loaded

    def put(self, run_id: str, loaded: StoredBrain) -> None:
        """Keep a run's brain."""
        with self._guard:
            self._brains[run_id] = loaded
            self._brains.move_to_end(run_id)
            while len(self._brains) > MAX_BRAINS:
                self._brains.popitem(last=False)

    def all(self) -> list[StoredBrain]:
        """Return the brains in memory."""
        with self._guard:
            return list(self._brains.values())

    def drop(self, run_id: str) -> None:
        """Forget a run's brain."""
        with self._guard:
            self._brains.pop(run_id, None)


class CatalogCache:
    """Catalogs by id; they never change. Thread-safe."""

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


class RunContext:
    """Mode, disarm and silences of a run, read once per transaction.

    A silence that ends at a step can end within a batch; one that ends at a time cannot, since a
    batch has one time.
    """

    def __init__(self, tx: RunTransaction) -> None:
        control = tx.repos.control.get()
        self._mode = Mode(tx.run.mode)
        self._disarmed = control is not None and control.disarmed
        self._silences = [
            (row.rule, row.until_step)
            for row in tx.repos.control.silences(tx.run.id)
            if row.until is None or row.until > tx.now
        ]

    def at(self, step: int) -> PolicyContext:
        """Return the context at a step."""
        silenced = frozenset(
            rule for rule, until_step in self._silences if until_step is None or step <= until_step
        )
        return PolicyContext(self._mode, self._disarmed, silenced)


def fresh_brain(
    tx: RunTransaction, rules: RuleFile, origin: Origin, catalogs: CatalogCache
) -> StoredBrain:
    """Build a brain without any history."""
    return StoredBrain(
        brain=_build(tx, rules, catalogs),
        origin=origin,
        version=tx.run.version,
        context=RunContext(tx).at(tx.run.step),
        is_dirty=True,
    )


def restore_brain(
    tx: RunTransaction, row: BrainStateRow, rules: RuleFile, catalogs: CatalogCache
) -> StoredBrain:
    """Restore a brain from its saved state, without the batches after it.

    Raises:
        ConfigurationError: The state was saved by other rules or another version of them.
    """
    brain = _build(tx, rules, catalogs)
    brain.load_state(row.state)
    return StoredBrain(
        brain=brain,
        origin=Origin(row.generation, row.incident_offset, row.rules_hash),
        version=tx.run.version,
        context=_load_context(row.context),
        seen={catalog: int(step) for catalog, step in row.seen.items()},
    )


def _build(tx: RunTransaction, rules: RuleFile, catalogs: CatalogCache) -> Brain:
    brain = Brain(rules)
    for catalog_id in tx.repos.catalogs.of_run(tx.run.id):
        brain.add_catalog(catalogs.get(tx.repos, catalog_id))
    return brain


def save_brain(tx: RunTransaction, loaded: StoredBrain) -> None:
    """Write a brain's state as of the run's version."""
    row = tx.repos.rules.state(tx.run.id)
    is_first = row is None
    if row is None:
        row = BrainStateRow(run_id=tx.run.id)
    row.rules_hash = loaded.origin.rules_hash
    row.generation = loaded.origin.generation
    row.incident_offset = loaded.origin.incident_offset
    row.version = tx.run.version
    row.state = loaded.brain.state_dict()
    row.context = _dump_context(loaded.context)
    row.seen = dict(loaded.seen)
    if is_first:
        tx.repos.rules.add_state(row)
    loaded.steps_since_save, loaded.is_dirty = 0, False


def saved_state(tx: RunTransaction) -> BrainStateRow:
    """Return the saved state of a run's brain.

    Raises:
        StorageError: There is none; every registration writes one.
    """
    row = tx.repos.rules.state(tx.run.id)
    if row is None:
        raise StorageError(f"run {tx.run.id} has no saved rule state")
    return row


def _dump_context(context: PolicyContext) -> dict[str, Any]:
    return {
        "mode": context.mode.value,
        "disarmed": context.disarmed,
        "silenced": sorted(context.silenced),
    }


def _load_context(data: dict[str, Any]) -> PolicyContext:
    return PolicyContext(Mode(data["mode"]), bool(data["disarmed"]), frozenset(data["silenced"]))

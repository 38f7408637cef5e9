"""Stores the steps of a log as a run of a collector.

The ids of run and attempts are made from the log itself, so that the same log again changes
nothing, and a longer one adds what is new: after an interruption, uploading just starts over.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from stabilizer.logs.stream import LogStep
from stabilizer.protocol.batches import AttemptStart, BatchAnswer, BatchHeader
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.message import PROTOCOL_VERSION
from stabilizer.protocol.runs import (
    CatalogsAdd,
    Heartbeat,
    Run,
    RunRegister,
    RunRegistered,
    RunState,
)
from stabilizer.protocol.series import Catalog

MAX_STEPS: Final = 256
MAX_VALUES: Final = 2_000_000
"""Limits of one batch."""
_MAX_CATALOGS: Final = 100
SILENT_SECONDS: Final = 300.0
"""Heartbeat interval that is promised: a run without new steps for three of them is lost."""


class RunStore(Protocol):
    """Where runs are stored: a collector's API, or its database.

    Every method raises `TelemetryError` if the store cannot be reached, and another error of ours
    if it does not take what it was given.
    """

    def register(self, register: RunRegister) -> RunRegistered:
        """Register a run; begins an attempt, unless the attempt's id is known."""
        ...

    def run(self, run_id: str) -> Run:
        """Return a run with its attempts."""
        ...

    def add_catalogs(self, run_id: str, message: CatalogsAdd) -> None:
        """Store catalogs; idempotent."""
        ...

    def send(self, run_id: str, header: BatchHeader, blocks: Sequence[FrameBlock]) -> BatchAnswer:
        """Store a batch; the same again changes nothing."""
        ...

    def heartbeat(self, run_id: str, heartbeat: Heartbeat) -> BatchAnswer:
        """Report a state."""
        ...


class RunUploader:
    """Uploads one run.

    Args:
        store: Where to.
        name: Name of the run.
        key: Tells it from other runs of this name: the same key is the same run.
        policy: Rule file for the run; None takes that of the collector.
        now: Seconds since the epoch, for a log that names no times.
    """

    def __init__(
        self, store: RunStore, name: str, key: str, policy: str | None, now: float
    ) -> None:
        self._store = store
        self._name = name
        self._key = key
        self._policy = policy
        self._now = now
        self._run_id: str | None = None
        self._origin_id = ""
        self._attempt_id = ""
        self._start = AttemptStart(from_step=0)
        self._sequence = 0
        self._stored_to = -1
        self._catalogs: set[str] = set()
        self._waiting: deque[LogStep] = deque()
        self.num_stored = 0
        """Steps that were not stored before."""

    @property
    def run_id(self) -> str | None:
        """The run; None until the first step has been sent."""
        return self._run_id

    @property
    def is_full(self) -> bool:
        """Whether enough steps wait for a batch."""
        return len(self._waiting) >= MAX_STEPS

    def put(self, step: LogStep) -> None:
        """Add a step, to be sent with the next `flush`."""
        self._waiting.append(step)

    def flush(self) -> None:
        """Send what waits.

        Raises:
            TelemetryError: The store cannot be reached; what was not stored is kept.
            StabilizerError: It does not take what it was given.
        """
        while self._waiting:
            if self._waiting[0].starts_attempt:
                self._begin_attempt(self._waiting[0])
            steps = self._next_batch()
            new = [step for step in steps if step.step > self._stored_to]
            if new and self._send(new):
                continue  # part of it was stored before: send the rest
            for _ in steps:
                self._waiting.popleft()

    def finish(self, message: str = "") -> None:
        """Send what waits and report the end of the run.

        Raises:
            StabilizerError: As `flush`.
        """
        self.flush()
        if self._run_id is not None:
            self._heartbeat(self._attempt_id, RunState.FINISHED, self._stored_to, message)

    def _next_batch(self) -> list[LogStep]:
        """Return the first steps that fit into a batch, all of one attempt."""
        steps: list[LogStep] = []
        num_values = 0
        for step in self._waiting:
            num_values += sum(len(catalog) for catalog, _ in step.frames)
            is_full = len(steps) >= MAX_STEPS or num_values > MAX_VALUES
            if steps and (step.starts_attempt or is_full):
                break
            steps.append(step)
        return steps

    def _begin_attempt(self, first: LogStep) -> None:
        attempt_id = self._id_of(first)
        if attempt_id == self._attempt_id:
            return  # once more, after a failure
        from_step = max(0, first.step - 1)
        if self._run_id is None:
            registered = self._store.register(
                RunRegister(
                    protocol_version=PROTOCOL_VERSION,
                    name=self._name,
                    key=self._key,
                    mode=Mode.OBSERVE,
                    policy=self._policy,
                    start_step=from_step,
                    heartbeat_seconds=SILENT_SECONDS,
                    attempt_id=attempt_id,
                )
            )
            self._run_id, self._origin_id = registered.run_id, attempt_id
        self._find_position(attempt_id, from_step)
        self._start = AttemptStart(
            from_step=from_step, parent_id=self._attempt_id or None, origin_id=self._origin_id
        )
        self._attempt_id = attempt_id

    def _find_position(self, attempt_id: str, from_step: int) -> None:
        """Ask how much of an attempt is stored."""
        answer = self._heartbeat(attempt_id, RunState.RUNNING, from_step)
        stored_to = -1
        if answer.accepted_sequence >= 0 and self._run_id is not None:
            attempts = self._store.run(self._run_id).attempts
            found = (a.last_step for a in attempts if a.number == answer.attempt)
            stored_to = next(found, -1)
        self._sequence, self._stored_to = answer.accepted_sequence + 1, stored_to

    def _id_of(self, first: LogStep) -> str:
        """Make the id of the attempt that begins with a step, from its content."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self._name}\n{self._key}\n{first.step}\n".encode())
        for catalog, block in first.frames:
            digest.update(catalog.id.encode() + np.ascontiguousarray(block.values).tobytes())
        return digest.hexdigest()

    def _send(self, steps: Sequence[LogStep]) -> bool:
        """Send a batch; return whether the store had a batch of its number before."""
        run_id = self._run_id or ""
        catalogs = {catalog.id: catalog for step in steps for catalog, _ in step.frames}
        new = tuple(catalog for name, catalog in catalogs.items() if name not in self._catalogs)
        for start in range(0, len(new), _MAX_CATALOGS):
            message = CatalogsAdd(catalogs=new[start : start + _MAX_CATALOGS])
            self._store.add_catalogs(run_id, message)
        self._catalogs |= set(catalogs)
        header = BatchHeader(
            attempt_id=self._attempt_id, sequence=self._sequence, attempt_start=self._start
        )
        answer = self._store.send(run_id, header, self._join(catalogs, steps))
        if answer.duplicate:  # the answer to a shorter batch was lost
            self._find_position(self._attempt_id, self._start.from_step)
            return True
        self._sequence += 1
        self._stored_to = steps[-1].step
        self.num_stored += len(steps)
        return False

    def _join(self, catalogs: dict[str, Catalog], steps: Sequence[LogStep]) -> list[FrameBlock]:
        """Join the frames of each catalog into one block."""
        frames: dict[str, list[FrameBlock]] = {name: [] for name in catalogs}
        for step in steps:
            for catalog, block in step.frames:
                frames[catalog.id].append(block)
        return [self._block(name, blocks) for name, blocks in frames.items()]

    def _block(self, catalog: str, blocks: Sequence[FrameBlock]) -> FrameBlock:
        times = np.concatenate([block.times for block in blocks])
        present = None
        if any(block.present is not None for block in blocks):
            present = np.concatenate(
                [
                    np.ones(block.values.shape, np.bool_)
                    if block.present is None
                    else block.present
                    for block in blocks
                ]
            )
        return FrameBlock(
            catalog=catalog,
            steps=np.concatenate([block.steps for block in blocks]),
            times=np.where(times > 0, times, self._now),
            values=np.concatenate([block.values for block in blocks]),
            present=present,
        )

    def _heartbeat(
        self, attempt_id: str, state: RunState, step: int, message: str = ""
    ) -> BatchAnswer:
        heartbeat = Heartbeat(
            attempt_id=attempt_id, step=max(0, step), state=state, message=message
        )
        return self._store.heartbeat(self._run_id or "", heartbeat)

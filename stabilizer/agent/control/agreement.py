"""Agreement of all ranks on what is carried out at a step boundary.

Rank 0 hears the collector; the others hear rank 0. At every boundary one small all-reduce starts
on a side group (gloo, host memory) and overlaps with the step; its outcome is read at the next
boundary. So every rank applies a command at the same boundary, one boundary after rank 0 first
offered it, and no rank waits for another more than the step itself makes it wait. Only when there
is a command, a second, blocking collective carries it.

Every rank must call `next` the same number of times; that is what step boundaries give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from stabilizer.protocol.commands import Command, RejectReason

_COMMANDS: Final = TypeAdapter(tuple[Command, ...])
_REASONS: Final = tuple(RejectReason)
_PATIENCE: Final = timedelta(days=1)
"""How late a rank may come to a boundary: far beyond the job's own limit, which is what counts. A
job that grants rank 0 a long evaluation must not be ended by us after gloo's 30 minutes."""


@dataclass(frozen=True)
class Word:
    """What a rank says beside commands; what all have said is the largest of each."""

    spoiled: bool = False
    """This rank's newest snapshot is not finite."""
    healthy: int = 0
    """Sequence number of the newest healthy snapshot, which no rank may drop; the leader's word."""


class Agreement(Protocol):
    """How the ranks of a job come to do the same."""

    is_leader: bool
    """Whether this rank talks with the collector."""

    heard: Word
    """What all ranks have said, as of the last `next`."""

    def next(self, offered: Sequence[Command], word: Word) -> tuple[Command, ...]:
        """At a boundary: offer commands, get those to be carried out at this boundary.

        Args:
            offered: What has newly arrived; only the leader's counts.
            word: Of this rank.
        """

    @property
    def is_busy(self) -> bool:
        """Whether commands offered before are still on their way to the ranks."""

    def vote(self, refusal: RejectReason | None) -> RejectReason | None:
        """All ranks say whether they can: the gravest refusal, or None if all can."""

    def close(self) -> tuple[Command, ...]:
        """End in order; all ranks. Returns the commands that were agreed on and not handed out."""


class SingleProcess:
    """The agreement of a job of one process: at once."""

    is_leader = True
    is_busy = False

    def __init__(self) -> None:
        self.heard = Word()

    def next(self, offered: Sequence[Command], word: Word) -> tuple[Command, ...]:
        """Give back what was offered."""
        self.heard = Word(healthy=word.healthy)  # what is spoiled the only rank knows already
        return tuple(offered)

    def vote(self, refusal: RejectReason | None) -> RejectReason | None:
        """Give back what this process says."""
        return refusal

    def close(self) -> tuple[Command, ...]:
        """Nothing is on its way."""
        return ()


class AllRanks:
    """The agreement of a job of several processes."""

    def __init__(self) -> None:
        # A group of its own: nothing of ours gets in between the job's collectives, on any backend.
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self.is_leader = dist.get_rank() == 0
        self.heard = Word()
        self._outbox: tuple[Command, ...] = ()
        self._status: torch.Tensor | None = None
        self._work: dist.Work | None = None

    @property
    def is_busy(self) -> bool:
        """Whether commands offered before are still on their way to the ranks."""
        return bool(self._outbox)

    def next(self, offered: Sequence[Command], word: Word) -> tuple[Command, ...]:
        """Offer commands; get those offered at the last boundary."""
        agreed = self._receive()
        self._outbox = tuple(offered) if self.is_leader else ()
        numbers = [len(self._encode()), int(word.spoiled), word.healthy]
        self._status = torch.tensor(numbers, dtype=torch.int64)
        self._work = dist.all_reduce(
            self._status, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return agreed

    def vote(self, refusal: RejectReason | None) -> RejectReason | None:
        """Take the refusal that stands last in the enum, over all ranks; blocking."""
        index = torch.tensor(0 if refusal is None else 1 + _REASONS.index(refusal))
        dist.all_reduce(index, op=dist.ReduceOp.MAX, group=self._group)
        return None if index.item() == 0 else _REASONS[int(index.item()) - 1]

    def close(self) -> tuple[Command, ...]:
        """Wait for the collective on its way and give back what it carried."""
        return self._receive()

    def _receive(self) -> tuple[Command, ...]:
        if self._work is None or self._status is None:
            return ()
        self._work.wait()
        num_bytes, spoiled, healthy = (int(value) for value in self._status.tolist())
        self._work = None
        self.heard = Word(spoiled=bool(spoiled), healthy=healthy)
        if num_bytes == 0:
            return ()
        body = torch.zeros(num_bytes, dtype=torch.uint8)
        if self.is_leader:
            body = torch.frombuffer(bytearray(self._encode()), dtype=torch.uint8)
        dist.broadcast(body, src=0, group=self._group)
        self._outbox = ()
        return _COMMANDS.validate_json(bytes(body.tolist()))

    def _encode(self) -> bytes:
        return _COMMANDS.dump_json(self._outbox) if self._outbox else b""

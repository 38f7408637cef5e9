"""Agreement of all ranks on the commands to apply at a step boundary.

Only rank 0 talks to the collector; it forwards commands to the other ranks. At every boundary one
small all-reduce starts on a side group (gloo, host memory) and overlaps with the step; its result
is read at the next boundary. All ranks therefore apply a command at the same boundary, one boundary
after rank 0 offered it, and no rank waits longer for another than the step itself requires. A
second, blocking collective carries the commands, only when there are any.

Every rank must call `exchange` the same number of times: once per step boundary.
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
_TIMEOUT: Final = timedelta(days=1)
"""How late a rank may reach a boundary. Far beyond the job's own limit, which is the one that must
apply: gloo's default of 30 minutes would end a job whose rank 0 runs a long evaluation."""


@dataclass(frozen=True)
class RankStatus:
    """What a rank reports with every exchange. Over ranks, the maximum of each field counts."""

    spoiled: bool = False
    """This rank's newest snapshot is not finite."""
    healthy: int = 0
    """Sequence number of the newest healthy snapshot, which no rank may drop. Set by the leader."""
    ending: bool = False
    """This rank runs no further step, for example after SIGTERM."""


class Agreement(Protocol):
    """How the ranks of a job act as one."""

    is_leader: bool
    """Whether this rank talks to the collector."""

    merged: RankStatus
    """Status over all ranks, as of the last `exchange`."""

    def share_id(self, attempt_id: str) -> str:
        """Return the leader's id on every rank. Blocks; every rank calls it once, at the start."""

    def exchange(self, offered: Sequence[Command], status: RankStatus) -> tuple[Command, ...]:
        """Offer commands at a boundary and return those to apply at this boundary.

        Args:
            offered: Newly received commands; only the leader's count.
            status: Status of this rank.
        """

    @property
    def is_busy(self) -> bool:
        """Whether offered commands are still on their way to the ranks."""

    def vote(self, refusal: RejectReason | None) -> RejectReason | None:
        """Return the gravest refusal over all ranks; None if every rank can apply the command."""

    def any_rank(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank. Blocks; every rank must call it."""

    def close(self) -> tuple[Command, ...]:
        """Finish on all ranks. Returns the commands agreed on but not yet handed out."""


class SingleProcess:
    """Agreement of a job with one process: immediate."""

    is_leader = True
    is_busy = False

    def __init__(self) -> None:
        self.merged = RankStatus()

    def share_id(self, attempt_id: str) -> str:
        """Return the id."""
        return attempt_id

    def exchange(self, offered: Sequence[Command], status: RankStatus) -> tuple[Command, ...]:
        """Return what was offered."""
        # the only rank knows what it has spoiled
        self.merged = RankStatus(healthy=status.healthy, ending=status.ending)
        return tuple(offered)

    def vote(self, refusal: RejectReason | None) -> RejectReason | None:
        """Return this process's refusal."""
        return refusal

    def any_rank(self, flag: bool) -> bool:
        """Return the flag."""
        return flag

    def close(self) -> tuple[Command, ...]:
        """Return nothing: no command is ever on its way."""
        return ()


class AllRanks:
    """Agreement of a job with several processes."""

    def __init__(self) -> None:
        # A group of its own, so that we never interleave with the job's collectives on any backend.
        self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        self.is_leader = dist.get_rank() == 0
        self.merged = RankStatus()
        self._outbox: tuple[Command, ...] = ()
        self._status = torch.zeros(4, dtype=torch.int64)
        self._work: dist.Work | None = None

    @property
    def is_busy(self) -> bool:
        """Whether offered commands are still on their way to the ranks."""
        return bool(self._outbox)

    def share_id(self, attempt_id: str) -> str:
        """Return the id of rank 0."""
        body = torch.frombuffer(bytearray.fromhex(attempt_id), dtype=torch.uint8)
        dist.broadcast(body, src=0, group=self._group)
        return bytes(body.tolist()).hex()

    def exchange(self, offered: Sequence[Command], status: RankStatus) -> tuple[Command, ...]:
        """Offer commands; return those offered at the last boundary."""
        agreed = self._receive()
        self._outbox = tuple(offered) if self.is_leader else ()
        numbers = [len(self._encode()), int(status.spoiled), status.healthy, int(status.ending)]
        self._status = torch.tensor(numbers, dtype=torch.int64)
        self._work = dist.all_reduce(
            self._status, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return agreed

    def vote(self, refusal: RejectReason | None) -> RejectReason | None:
        """Return the refusal that comes last in the enum, over all ranks. Blocks."""
        index = torch.tensor(0 if refusal is None else 1 + _REASONS.index(refusal))
        dist.all_reduce(index, op=dist.ReduceOp.MAX, group=self._group)
        return None if index.item() == 0 else _REASONS[int(index.item()) - 1]

    def any_rank(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank. Blocks."""
        merged = torch.tensor(int(flag))
        dist.all_reduce(merged, op=dist.ReduceOp.MAX, group=self._group)
        return bool(merged.item())

    def close(self) -> tuple[Command, ...]:
        """Wait for the running collective and return what it carried."""
        return self._receive()

    def _receive(self) -> tuple[Command, ...]:
        if self._work is None:
            return ()
        self._work.wait()
        num_bytes, spoiled, healthy, ending = (int(value) for value in self._status.tolist())
        self._work = None
        self.merged = RankStatus(bool(spoiled), healthy, bool(ending))
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

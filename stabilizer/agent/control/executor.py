"""Applies commands at step boundaries.

A rollback restores, re-applies the active overrides, reads back, compares, and then trains. The
learning-rate override is not restored: a cut outlives a rollback. Rates are read back from the
optimizer step after the command, so that the result reports what was used, not what was intended.
A command is rejected before anything is touched. A restore that fails half way is reported and then
raised: training on half-restored state is never allowed.

Runs in the training thread on every rank; only rank 0's results are sent.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from stabilizer.agent.control.agreement import Agreement, RankStatus
from stabilizer.agent.control.inbox import CommandInbox
from stabilizer.agent.control.limits import Limits
from stabilizer.agent.control.optimizer_step import LrOverride
from stabilizer.agent.control.snapshots import Snapshot, SnapshotRing
from stabilizer.errors import CommandRejectedError, ControlError, RestoreError
from stabilizer.protocol.batches import AttemptStart, Marker, MarkerKind
from stabilizer.protocol.commands import (
    Command,
    CommandResult,
    CommandState,
    PauseParameters,
    ReadBack,
    ReduceLrParameters,
    RejectReason,
    ResumeParameters,
    RollbackParameters,
    StopParameters,
)

logger = logging.getLogger(__name__)

_PAUSE_POLL_SECONDS: Final = 1.0
_READ_BACK_STEPS: Final = 50
"""Training steps without an optimizer step (a gradient scaler may skip some) before failing."""


class Training(Protocol):
    """What commands need of the running job."""

    @property
    def step(self) -> int:
        """Completed optimizer steps."""

    @property
    def samples(self) -> int:
        """Position in the data, in samples of the stream."""

    @property
    def is_ending(self) -> bool:
        """Whether no further step will run."""

    @property
    def unsupported(self) -> str | None:
        """Why this job cannot be rewound; None if it can."""

    def check(self, snapshot: Snapshot) -> None:
        """Raise CommandRejectedError if the snapshot cannot be restored. Touches nothing."""

    def restore(self, snapshot: Snapshot, skip_steps: int) -> int:
        """Restore, skip data, return the number of samples skipped; or raise RestoreError."""

    def stop(self) -> None:
        """Stop at this boundary."""

    def save_checkpoint(self, name: str) -> str:
        """Write a durable checkpoint; return its path, or raise ControlError."""


class JobEvents(Protocol):
    """Receives what the executor reports beside command results."""

    @property
    def attempt(self) -> int:
        """Number of the current attempt in this process, from 1."""

    @property
    def attempt_id(self) -> str:
        """Id of the current attempt; the same on every rank."""

    def begin_attempt(self, start: AttemptStart) -> None:
        """Begin the next attempt."""

    def marker(self, marker: Marker) -> None:
        """Report an event."""

    def set_paused(self, paused: bool, step: int) -> None:
        """Report that the job has paused or resumed."""


@dataclass(frozen=True)
class _PendingReadBack:
    """A result whose rates are read back at the next optimizer step."""

    result: CommandResult
    steps_seen: int
    steps_left: int = _READ_BACK_STEPS


class Executor:
    """Takes commands at boundaries and applies them."""

    def __init__(  # noqa: PLR0913  everything that a command touches
        self,
        training: Training,
        events: JobEvents,
        inbox: CommandInbox,
        ring: SnapshotRing,
        override: LrOverride,
        agreement: Agreement,
        *,
        limits: Limits,
    ) -> None:
        self._training = training
        self._events = events
        self._inbox = inbox
        self._ring = ring
        self._override = override
        self._agreement = agreement
        self._limits = limits
        self._fence = 0
        self._pending: list[_PendingReadBack] = []
        self._newest_id: str | None = None
        self._exchanged_id: str | None = None
        self._newest_spoiled = False
        self._rewound = False
        self.is_paused = False
        self.is_stopping = False
        self.rollbacks = 0
        """Rollbacks so far, over the restarts of the job."""

    def boundary(self) -> bool:
        """Apply the agreed commands; blocks here while paused.

        Returns:
            Whether the job was rewound.

        Raises:
            RestoreError: The state may be half restored. The job must not continue.
        """
        self._rewound = False
        self._apply_all(self._agree())
        while self.is_paused and not self.is_stopping:
            if self._agreement.merged.ending:  # SIGTERM must end a paused job too
                self._pause(False)
                break
            if self._agreement.is_leader and not self._agreement.is_busy:
                self._inbox.wait(_PAUSE_POLL_SECONDS)
            self._apply_all(self._agree())
        return self._rewound

    def note_snapshot(self, snapshot: Snapshot) -> None:
        """Remember the newest snapshot: ranks report whether their part of it is finite."""
        self._newest_id = snapshot.info.id
        self._newest_spoiled = not snapshot.info.finite

    def after_step(self) -> None:
        """Read back the rates that the step used and settle the results that wait for them."""
        pending, self._pending = self._pending, []
        for item in pending:
            if self._override.steps_seen > item.steps_seen:
                self._settle_read_back(item.result)
            elif item.steps_left > 0:
                self._pending.append(replace(item, steps_left=item.steps_left - 1))
            else:
                self._settle_mismatch(
                    item.result, "no optimizer step has passed through the agent's hooks"
                )

    def finish(self) -> None:
        """Settle everything still open, after the last step. All ranks."""
        self._settle_without_step()
        for command in (*self._agreement.close(), *self._inbox.take()):
            self._reject(command, RejectReason.RUN_ENDING, "the run is ending")

    def _agree(self) -> tuple[Command, ...]:
        is_leader = self._agreement.is_leader
        offered = self._inbox.take() if is_leader else []
        healthy = self._ring.newest_healthy() if is_leader else 0
        agreed = self._agreement.exchange(
            offered, RankStatus(self._newest_spoiled, healthy, self._training.is_ending)
        )
        merged = self._agreement.merged
        self._ring.protect(merged.healthy)
        if merged.spoiled and self._exchanged_id is not None:
            self._ring.mark_not_finite(self._exchanged_id)
        self._exchanged_id = self._newest_id
        return agreed

    def _apply_all(self, commands: Sequence[Command]) -> None:
        for command in commands:
            refusal = self._find_refusal(command)
            verdict = self._agreement.vote(RejectReason(refusal.reason) if refusal else None)
            if verdict is None:
                self._apply(command)
            else:
                self._reject(
                    command, verdict, refusal.message if refusal else "rejected by another rank"
                )

    def _find_refusal(self, command: Command) -> CommandRejectedError | None:
        try:
            self._check(command)
        except CommandRejectedError as refusal:
            return refusal
        return None

    def _check(self, command: Command) -> None:
        parameters = command.parameters
        if command.attempt_id != self._events.attempt_id:
            raise CommandRejectedError(
                f"decided for attempt {command.attempt}; the job has begun another one since",
                reason=RejectReason.PAST_ATTEMPT,
            )
        if command.fence < self._fence:
            raise CommandRejectedError(
                f"fencing number {command.fence}; a collector with {self._fence} has taken over",
                reason=RejectReason.STALE_FENCE,
            )
        if self._training.is_ending or self.is_stopping:
            raise CommandRejectedError("the run is ending", reason=RejectReason.RUN_ENDING)
        if isinstance(parameters, ResumeParameters) and not self.is_paused:
            raise CommandRejectedError("the job is not paused", reason=RejectReason.NOT_PAUSED)
        if isinstance(parameters, RollbackParameters):
            if (obstacle := self._training.unsupported) is not None:
                raise CommandRejectedError(obstacle, reason=RejectReason.UNSUPPORTED)
            self._training.check(self._ring.find(parameters.target))
        self._limits.check(command, lr_scale=self._override.scale, rollbacks=self.rollbacks)

    def _apply(self, command: Command) -> None:
        parameters = command.parameters
        step = self._training.step
        self._fence = command.fence
        logger.info("command %s: %s at step %d", command.id, command.kind, step)
        if isinstance(parameters, RollbackParameters):
            self._roll_back(command, parameters)
        elif isinstance(parameters, ReduceLrParameters):
            self._override.cut(parameters)
            self._events.marker(_lr_marker(step, self._override.scale))
            self._settle_after_step(self._applied(command, step))
        elif isinstance(parameters, PauseParameters | ResumeParameters):
            self._pause(isinstance(parameters, PauseParameters))
            self._inbox.settle(self._applied(command, step))
        elif isinstance(parameters, StopParameters):
            self._stop()
            self._inbox.settle(self._applied(command, step))
        else:
            self._save_checkpoint(command)

    def _roll_back(self, command: Command, parameters: RollbackParameters) -> None:
        before = self._training.step
        self._settle_without_step()
        snapshot = self._ring.find(parameters.target)
        try:
            skipped = self._training.restore(snapshot, parameters.skip_steps)
            self._compare(snapshot, skipped)
        except RestoreError as error:
            self._settle_failure(command, before, error)
            raise
        self._rewound = True
        self.rollbacks += 1
        self._ring.drop_after(snapshot.info.step)
        if parameters.reduce_lr is not None:
            self._override.cut(parameters.reduce_lr)
        self._events.begin_attempt(
            AttemptStart(
                from_step=snapshot.info.step,
                parent_id=self._events.attempt_id,
                reason=MarkerKind.ROLLBACK,
                command_id=command.id,
                skipped_samples=skipped,
            )
        )
        result = self._applied(command, before, skipped_samples=skipped)
        if self._override.cuts:
            self._events.marker(_lr_marker(snapshot.info.step, self._override.scale))
            self._settle_after_step(result)
        else:
            self._inbox.settle(result)

    def _compare(self, snapshot: Snapshot, skipped: int) -> None:
        info = snapshot.info
        expected = (info.step, info.samples + skipped)
        actual = (self._training.step, self._training.samples)
        if actual != expected:
            raise RestoreError(
                f"after restoring {info.id} the job is at (step, samples) {actual}, "
                f"not at {expected}"
            )

    def _pause(self, paused: bool) -> None:
        if paused:
            self._settle_without_step()
        self.is_paused = paused
        self._events.set_paused(paused, self._training.step)

    def _stop(self) -> None:
        self._settle_without_step()
        self.is_stopping = True
        self.is_paused = False
        self._training.stop()

    def _save_checkpoint(self, command: Command) -> None:
        step = self._training.step
        try:
            path = self._training.save_checkpoint(command.id)
        except (OSError, RuntimeError, ControlError) as error:  # torch's writer: RuntimeError
            logger.exception("the checkpoint requested by command %s failed", command.id)
            self._settle_failure(command, step, error, reason=None)
            return
        result = self._applied(command, step)
        read_back = self._read_back().model_copy(update={"checkpoint_path": path})
        self._inbox.settle(result.model_copy(update={"read_back": read_back}))

    def _applied(
        self, command: Command, applied_step: int, *, skipped_samples: int = 0
    ) -> CommandResult:
        read_back = self._read_back().model_copy(update={"skipped_samples": skipped_samples})
        return CommandResult(
            command_id=command.id,
            state=CommandState.APPLIED,
            applied_step=applied_step,
            read_back=read_back,
        )

    def _read_back(self) -> ReadBack:
        return ReadBack(
            attempt=self._events.attempt,
            attempt_id=self._events.attempt_id,
            step=self._training.step,
            lr=self._override.expected(),
            lr_scale=self._override.scale,
            samples=self._training.samples,
        )

    def _settle_after_step(self, result: CommandResult) -> None:
        self._pending.append(_PendingReadBack(result, self._override.steps_seen))

    def _settle_read_back(self, result: CommandResult) -> None:
        if self._override.broken is not None:
            self._settle_mismatch(result, self._override.broken)
            return
        rates = {name: float(rate) for name, rate in self._override.effective.items()}
        read_back = result.read_back and result.read_back.model_copy(update={"lr": rates})
        self._inbox.settle(result.model_copy(update={"read_back": read_back}))

    def _settle_mismatch(self, result: CommandResult, message: str) -> None:
        update = {
            "state": CommandState.FAILED,
            "reason": RejectReason.READ_BACK_MISMATCH,
            "message": message,
        }
        self._inbox.settle(result.model_copy(update=update))

    def _settle_without_step(self) -> None:
        """Settle before any step has run: report the rates that the next step would use."""
        pending, self._pending = self._pending, []
        for item in pending:
            message = "no optimizer step has run since: these are the rates that were set"
            self._inbox.settle(item.result.model_copy(update={"message": message}))

    def _settle_failure(
        self,
        command: Command,
        step: int,
        error: Exception,
        reason: RejectReason | None = RejectReason.RESTORE_FAILED,
    ) -> None:
        self._inbox.settle(
            CommandResult(
                command_id=command.id,
                state=CommandState.FAILED,
                reason=reason,
                message=str(error)[:2000],
                applied_step=step,
            )
        )

    def _reject(self, command: Command, reason: RejectReason, message: str) -> None:
        logger.warning("command %s (%s) rejected: %s", command.id, command.kind, message)
        self._inbox.settle(
            CommandResult(
                command_id=command.id,
                state=CommandState.REJECTED,
                reason=reason,
                message=message[:2000],
            )
        )


def _lr_marker(step: int, scale: float) -> Marker:
    return Marker(kind=MarkerKind.LR_CHANGE, step=step, text=f"lr_scale {scale:.6g}")

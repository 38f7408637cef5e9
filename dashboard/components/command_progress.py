"""Progress of a command, and the comparison of its read-back with the command."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from dashboard.formatting import count, counted, number
from dashboard.text import actor_name, phrase, reason_phrase
from stabilizer.protocol.commands import (
    CheckpointNowParameters,
    Command,
    CommandState,
    PauseParameters,
    ReadBack,
    ReduceLrParameters,
    RejectReason,
    ResumeParameters,
    RollbackParameters,
    StopParameters,
)
from stabilizer.protocol.queries import AuditAction, AuditEntry, AuditReason

_SCALE_TOLERANCE: Final = 1e-5
"""Relative: the scale before is a stored sample, in float32."""
_NOT_KNOWN: Final = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadBackContext:
    """Context of a command to compare its read-back with."""

    global_batch: int | None = None
    """Samples per optimizer step; None if unknown."""
    lr_scale: float | None = None
    """lr_scale of the last step before the command was applied; None if not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadBackCheck:
    """One line of the comparison."""

    what: str
    expected: str
    read: str
    ok: bool | None
    """None: not known."""


@dataclass(frozen=True, slots=True)
class ReadBackVerdict:
    """Comparison of the read-back with the command."""

    checks: tuple[ReadBackCheck, ...] = ()

    @property
    def ok(self) -> bool | None:
        """False if a line differs, True if at least one was compared and none differs."""
        answers = {check.ok for check in self.checks}
        if False in answers:
            return False
        return True if True in answers else None


def verify(command: Command, known: ReadBackContext | None = None) -> ReadBackVerdict:
    """Compare the read-back of the job with the command.

    Values that were not read back, or whose expected value is unknown, are neither right nor wrong.
    NaN is wrong where a number is expected.
    """
    read_back = None if command.result is None else command.result.read_back
    if read_back is None:
        return ReadBackVerdict()
    return ReadBackVerdict(tuple(_checks(command, read_back, known or ReadBackContext())))


def _checks(command: Command, read: ReadBack, known: ReadBackContext) -> Iterator[ReadBackCheck]:
    match command.parameters:
        case RollbackParameters() as rollback:
            yield from _rollback_checks(command, rollback, read, known)
            if rollback.reduce_lr is not None:
                yield _scale_check(rollback.reduce_lr, read, known)
            yield _rates_check(read)
        case ReduceLrParameters() as cut:
            yield _same_attempt_check(command, read)
            yield _scale_check(cut, read, known)
            yield _rates_check(read)
        case CheckpointNowParameters():
            path = read.checkpoint_path
            yield ReadBackCheck(
                what="checkpoint", expected="a path", read=path or "none", ok=bool(path)
            )
        case PauseParameters() | ResumeParameters() | StopParameters():
            yield _place_check(command, read)


def _rollback_checks(
    command: Command, rollback: RollbackParameters, read: ReadBack, known: ReadBackContext
) -> Iterator[ReadBackCheck]:
    target = rollback.target
    yield ReadBackCheck(
        what="step",
        expected=count(target.step),
        read=count(read.step),
        ok=read.step == target.step,
    )
    yield ReadBackCheck(
        what="attempt",
        expected=f"after {command.attempt}",
        read=str(read.attempt),
        ok=read.attempt > command.attempt,
    )
    batch = known.global_batch
    skipped = 0 if rollback.skip_steps == 0 else None
    if batch is not None:
        skipped = rollback.skip_steps * batch
    yield ReadBackCheck(
        what="samples skipped",
        expected=_NOT_KNOWN if skipped is None else count(skipped),
        read=count(read.skipped_samples),
        ok=None if skipped is None else read.skipped_samples == skipped,
    )


def _same_attempt_check(command: Command, read: ReadBack) -> ReadBackCheck:
    return ReadBackCheck(
        what="attempt",
        expected=str(command.attempt),
        read=str(read.attempt),
        ok=read.attempt == command.attempt,
    )


def _scale_check(cut: ReduceLrParameters, read: ReadBack, known: ReadBackContext) -> ReadBackCheck:
    """Check lr_scale after a reduction: at most its factor, since reductions multiply.

    It may exceed the scale before times the factor while an earlier reduction ramps back.
    """
    scale, before = read.lr_scale, known.lr_scale
    is_possible = 0 < scale <= cut.factor * (1 + _SCALE_TOLERANCE)
    if before is None or not math.isfinite(before):
        expected = f"at most {number(cut.factor)}"
        return ReadBackCheck(what="lr_scale", expected=expected, read=number(scale), ok=is_possible)
    wanted = before * cut.factor
    ok: bool | None = math.isclose(scale, wanted, rel_tol=_SCALE_TOLERANCE)
    if not ok and is_possible and scale > wanted:
        ok = None
    return ReadBackCheck(what="lr_scale", expected=number(wanted), read=number(scale), ok=ok)


def _rates_check(read: ReadBack) -> ReadBackCheck:
    rates = read.lr
    return ReadBackCheck(
        what="learning rate",
        expected="finite in every group",
        read=", ".join(f"{group}: {number(rate)}" for group, rate in rates.items()) or "none",
        ok=all(math.isfinite(rate) and rate >= 0 for rate in rates.values()) if rates else None,
    )


def _place_check(command: Command, read: ReadBack) -> ReadBackCheck:
    applied = None if command.result is None else command.result.applied_step
    return ReadBackCheck(
        what="step",
        expected=_NOT_KNOWN if applied is None else count(applied),
        read=count(read.step),
        ok=None if applied is None else read.step == applied,
    )


class StageState(StrEnum):
    """State of one stage of a command."""

    DONE = "done"
    NOW = "now"
    AHEAD = "ahead"
    BROKEN = "broken"
    """The command ended here without success."""
    UNKNOWN = "unknown"
    """Past, but it could not be verified."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of a command."""

    name: str
    state: StageState
    at: datetime | None = None
    who: str = ""
    """`the policy`, `the job`, a user's name; empty if unknown."""
    text: str = ""


def stages(
    command: Command, *, history: Sequence[AuditEntry] = (), verdict: ReadBackVerdict | None = None
) -> tuple[Stage, ...]:
    """Return the stages: proposed, approved, delivered, applied, verified, or where it ended.

    Args:
        command: The command.
        history: Audit entries, of this command or of others too; they name who approved and when.
        verdict: Result of `verify`; None verifies without further context.
    """
    entries = [entry for entry in history if entry.subject == command.id]
    past = [*_beginning(command, entries)]
    if command.delivered_at is not None:
        past.append(_done("delivered", at=command.delivered_at, who="collector"))
    if command.state is CommandState.APPLIED:
        return (*past, _applied(command, entries), _verified(command, verdict))
    if command.is_settled:
        return (*past, _end(command, entries))
    return (*past, *_ahead(command))


def was_proposed(command: Command, history: Sequence[AuditEntry] = ()) -> bool:
    """Tell whether the command was proposed first, not sent at once."""
    for entry in history:
        if entry.subject == command.id and entry.action is AuditAction.COMMAND_CREATED:
            return (entry.after or {}).get("state") == CommandState.PROPOSED.value
    is_rejected = command.reason == RejectReason.REFUSED_BY_PERSON and command.result is None
    return command.state is CommandState.PROPOSED or (
        is_rejected and command.state is CommandState.REJECTED
    )


def _beginning(command: Command, entries: Sequence[AuditEntry]) -> Iterator[Stage]:
    proposed = was_proposed(command, entries)
    name = "proposed" if proposed else "sent"
    yield _done(name, at=command.issued_at, who=command.actor, text=_issued_at_step(command))
    approval = _find(entries, AuditReason.APPROVED_BY_PERSON)
    if approval is not None:
        yield _done("approved", at=approval.at, who=approval.actor, text=approval.message)


def _issued_at_step(command: Command) -> str:
    return "" if command.issued_step is None else f"at step {count(command.issued_step)}"


def _ahead(command: Command) -> Iterator[Stage]:
    names = ["approved", "delivered", "applied", "verified"]
    now = {
        CommandState.PROPOSED: "approved",
        CommandState.PENDING: "delivered",
        CommandState.DELIVERED: "applied",
    }[command.state]
    for name in names[names.index(now) :]:
        is_now = name == now
        yield Stage(
            name=name,
            state=StageState.NOW if is_now else StageState.AHEAD,
            text=phrase(command.state) if is_now else "",
        )


def _applied(command: Command, entries: Sequence[AuditEntry]) -> Stage:
    step = None if command.result is None else command.result.applied_step
    text = "" if step is None else f"at step {count(step)}"
    if _find(entries, AuditReason.CARRIED_OUT_LATE) is not None:
        text = f"{text}, after it had expired".removeprefix(", ")
    return _done("applied", at=command.settled_at, who="job", text=text)


def _verified(command: Command, verdict: ReadBackVerdict | None) -> Stage:
    verdict = verify(command) if verdict is None else verdict
    compared = sum(check.ok is not None for check in verdict.checks)
    if verdict.ok is None:
        text = "no read-back from the job" if not verdict.checks else "nothing to compare with"
        return Stage(name="not verified", state=StageState.UNKNOWN, text=text)
    if not verdict.ok:
        wrong = ", ".join(check.what for check in verdict.checks if check.ok is False)
        return Stage(name="mismatch", state=StageState.BROKEN, text=f"read-back differs: {wrong}")
    return Stage(
        name="verified",
        state=StageState.DONE,
        text=f"{counted(compared, 'value')} match the read-back",
    )


def _end(command: Command, entries: Sequence[AuditEntry]) -> Stage:
    entry = next(
        (e for e in reversed(entries) if (e.after or {}).get("state") == command.state.value), None
    )
    return Stage(
        name=command.state.value,
        state=StageState.BROKEN,
        at=command.settled_at,
        who=_ended_by(command) if entry is None else actor_name(entry.actor),
        text=reason_phrase(command.reason),
    )


def _ended_by(command: Command) -> str:
    """Return who ended the command, without an audit entry."""
    if command.result is not None:
        return actor_name("job")
    if command.reason == RejectReason.REFUSED_BY_PERSON:
        return "a user"
    return actor_name("collector") if command.state is CommandState.EXPIRED else ""


def _done(name: str, *, at: datetime | None, who: str, text: str = "") -> Stage:
    return Stage(name=name, state=StageState.DONE, at=at, who=actor_name(who), text=text)


def _find(entries: Sequence[AuditEntry], reason: AuditReason) -> AuditEntry | None:
    return next((entry for entry in entries if entry.reason == reason), None)

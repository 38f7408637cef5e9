"""Texts of the pages: a phrase for every state, reason and command of the protocol.

Phrases start in lower case and have no full stop, so that they can follow a colon. Labels are the
values of the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from dashboard.formatting import count, counted, exact
from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.commands import (
    CommandKind,
    CommandParameters,
    CommandState,
    ReduceLrParameters,
    RejectReason,
    RollbackParameters,
)
from stabilizer.protocol.decisions import (
    AlertState,
    DecisionKind,
    DecisionReason,
    IncidentState,
    Mode,
    Severity,
)
from stabilizer.protocol.queries import AuditAction, AuditReason, CommandRequest, RollbackRequest
from stabilizer.protocol.runs import RunState
from stabilizer.protocol.views import PreviewWarning

USER_PREFIX: Final = "person:"

_PHRASES: Final[Mapping[type[StrEnum], Mapping[StrEnum, str]]] = {
    DecisionKind: {
        DecisionKind.WAIT: "waiting",
        DecisionKind.ACT: "acting",
        DecisionKind.PROPOSE: "proposed",
        DecisionKind.HOLD: "on hold",
        DecisionKind.RESOLVE: "resolved",
        DecisionKind.ESCALATE: "escalated",
    },
    DecisionReason: {
        DecisionReason.MAY_RECOVER: "may recover without action",
        DecisionReason.SECOND_SIGNAL_MISSING: "waiting for a second signal",
        DecisionReason.COMMAND_IN_FLIGHT: "another command is in flight",
        DecisionReason.WATCHING: "watching its effect",
        DecisionReason.DIVERGENCE: "run is diverging",
        DecisionReason.PRECURSOR_CONFIRMED: "precursor confirmed by a second signal",
        DecisionReason.RELAPSE: "relapse, or no improvement",
        DecisionReason.DEADLINE_PASSED: "no recovery within the time limit",
        DecisionReason.COMMAND_FAILED: "previous command failed",
        DecisionReason.MANUAL: "manual decision",
        DecisionReason.MODE_OBSERVE: "mode is observe",
        DecisionReason.MODE_PROPOSE: "mode is propose",
        DecisionReason.BUDGET_SPENT: "intervention budget used up",
        DecisionReason.COOLDOWN: "in cooldown",
        DecisionReason.DISARMED: "all runs are disarmed",
        DecisionReason.SILENCED: "rules silenced",
        DecisionReason.NO_HEALTHY_SNAPSHOT: "no healthy snapshot",
        DecisionReason.LADDER_EXHAUSTED: "no steps left",
        DecisionReason.RECOVERED_BY_ITSELF: "recovered without action",
        DecisionReason.INTERVENTION_HELPED: "intervention helped",
        DecisionReason.CLOSED_BY_PERSON: "closed by a user",
        DecisionReason.RUN_ENDED: "run ended",
    },
    RejectReason: {
        RejectReason.PAST_ATTEMPT: "the run is already on a later attempt",
        RejectReason.UNKNOWN_SNAPSHOT: "the job does not hold this snapshot",
        RejectReason.SNAPSHOT_NOT_FINITE: "the snapshot has non-finite values",
        RejectReason.EXPIRED: "expired before the job received it",
        RejectReason.UNSUPPORTED: "not supported by this job",
        RejectReason.NOT_PAUSED: "the job is not paused",
        RejectReason.RUN_ENDING: "the run is ending",
        RejectReason.RESTORE_FAILED: "the restore failed",
        RejectReason.READ_BACK_MISMATCH: "the read-back differs from the command",
        RejectReason.STALE_FENCE: "sent by a collector that no longer holds the run",
        RejectReason.REFUSED_BY_PERSON: "rejected by a user",
        RejectReason.SUPERSEDED: "superseded by a later decision",
        RejectReason.OTHER_RUN: "meant for another run",
        RejectReason.BEYOND_LIMITS: "beyond the limits that the job was started with",
    },
    AuditAction: {
        AuditAction.RUN_REGISTERED: "run registered",
        AuditAction.RUN_STATE_CHANGED: "run state changed",
        AuditAction.RUN_MODE_CHANGED: "mode changed",
        AuditAction.RUN_RULES_CHANGED: "rules changed",
        AuditAction.RUN_DELETED: "run deleted",
        AuditAction.ATTEMPT_STARTED: "attempt started",
        AuditAction.INCIDENT_CHANGED: "incident changed",
        AuditAction.DECISION_MADE: "policy decision",
        AuditAction.COMMAND_CREATED: "command created",
        AuditAction.COMMAND_CHANGED: "command updated",
        AuditAction.DISARMED: "all runs disarmed",
        AuditAction.ARMED: "all runs armed",
        AuditAction.SILENCE_CREATED: "rule silenced",
        AuditAction.SILENCE_REMOVED: "silence ended",
    },
    AuditReason: {
        AuditReason.REGISTERED: "registered",
        AuditReason.REPORTED_BY_JOB: "reported by the job",
        AuditReason.NO_SIGN_OF_LIFE: "no heartbeat",
        AuditReason.HEARD_AGAIN: "heartbeat received again",
        AuditReason.APPROVED_BY_PERSON: "approved",
        AuditReason.REQUESTED_BY_PERSON: "requested by a user",
        AuditReason.SENT_TO_JOB: "delivered to the job",
        AuditReason.CARRIED_OUT: "applied by the job",
        AuditReason.CARRIED_OUT_LATE: "applied by the job after it had expired",
        AuditReason.FAILED_IN_JOB: "failed in the job",
        AuditReason.RULES_REPLACED: "rules replaced",
    },
    CommandKind: {
        CommandKind.ROLLBACK: "roll back",
        CommandKind.REDUCE_LR: "reduce the learning rate",
        CommandKind.PAUSE: "pause",
        CommandKind.RESUME: "resume",
        CommandKind.STOP: "stop",
        CommandKind.CHECKPOINT_NOW: "write a checkpoint",
    },
    CommandState: {
        CommandState.PROPOSED: "approval needed",
        CommandState.PENDING: "waiting for the job",
        CommandState.DELIVERED: "delivered to the job",
        CommandState.APPLIED: "applied by the job",
        CommandState.REJECTED: "rejected",
        CommandState.FAILED: "failed in the job",
        CommandState.EXPIRED: "expired before the job received it",
        CommandState.CANCELLED: "cancelled before the job received it",
    },
    IncidentState: {
        IncidentState.OPEN: "the policy is deciding",
        IncidentState.ACTING: "a command is in flight",
        IncidentState.WATCHING: "watching whether the intervention helps",
        IncidentState.RESOLVED: "resolved",
    },
    AlertState: {
        AlertState.INACTIVE: "inactive",
        AlertState.PENDING: "condition met, not yet for long enough",
        AlertState.FIRING: "firing",
        AlertState.RESOLVED: "resolved",
    },
    Severity: {
        Severity.NOTICE: "informational; never acted on alone",
        Severity.PRECURSOR: "early sign of divergence",
        Severity.DIVERGENCE: "the run is diverging",
    },
    Mode: {
        Mode.OBSERVE: "shows incidents; sends no commands",
        Mode.PROPOSE: "proposes commands; you approve or reject each",
        Mode.AUTO: "sends commands without approval, within budget and cooldown",
    },
    RunState: {
        RunState.RUNNING: "training",
        RunState.PAUSED: "paused until resumed",
        RunState.FINISHED: "completed",
        RunState.FAILED: "ended with an error",
        RunState.LOST: "no heartbeat",
    },
    MarkerKind: {
        MarkerKind.RESUME: "job resumed",
        MarkerKind.ROLLBACK: "job rolled back",
        MarkerKind.LR_CHANGE: "learning rate changed",
        MarkerKind.PHASE_CHANGE: "phase changed",
    },
    PreviewWarning: {
        PreviewWarning.TARGET_NOT_HEALTHY: "the snapshot is not confirmed healthy",
        PreviewWarning.TARGET_ABANDONED: "the snapshot is on an abandoned branch",
        PreviewWarning.RUN_NOT_REPORTING: (
            "the run sends no heartbeat: the job may never receive the command"
        ),
        PreviewWarning.RUN_PAUSED: "the run is paused and stays paused",
        PreviewWarning.RUN_NOT_PAUSED: "the run is not paused: the job will reject it",
        PreviewWarning.OTHER_COMMAND_IN_FLIGHT: "another command is in flight",
        PreviewWarning.COMMAND_PROPOSED: "another command needs approval",
        PreviewWarning.GLOBAL_BATCH_UNKNOWN: (
            "samples per step unknown: the skip cannot be counted"
        ),
    },
}


def phrase(member: StrEnum) -> str:
    """Return the phrase of a state, reason or kind."""
    return _PHRASES[type(member)][member]


def label(member: StrEnum) -> str:
    """Return the value of a state or kind, without underscores."""
    return member.value.replace("_", " ")


def reason_phrase(reason: str) -> str:
    """Return the phrase of a command's reason, whichever enum it is from."""
    for kind in (DecisionReason, RejectReason, AuditReason):
        if reason in set(kind):
            return phrase(kind(reason))
    return reason.replace("_", " ")


def with_message(reason: str, message: str) -> str:
    """Append a message to a phrase; a message that contains the phrase replaces it."""
    if reason in message:
        return message
    return f"{reason}: {message}" if message else reason


def actor_name(actor: str) -> str:
    """Return `the policy`, `the job`, `the collector`, or a user's name."""
    return actor.removeprefix(USER_PREFIX) if is_user(actor) else f"the {actor}"


def is_user(actor: str) -> bool:
    """Tell whether the actor is a user."""
    return actor.startswith(USER_PREFIX)


def capital(text: str) -> str:
    """Capitalise the first letter only."""
    return text[:1].upper() + text[1:]


def command_title(parameters: CommandParameters | CommandRequest) -> str:
    """Name a command in a few words: `roll back to step 1,200`."""
    if isinstance(parameters, RollbackParameters):
        return f"roll back to step {count(parameters.target.step)}"
    if isinstance(parameters, ReduceLrParameters):
        return f"multiply the learning rate by {exact(parameters.factor)}"
    return phrase(parameters.kind)


def command_sentence(
    parameters: CommandParameters | CommandRequest, *, global_batch: int | None = None
) -> str:
    """Describe a command in full.

    Args:
        parameters: Of a command, or of one that is not sent yet.
        global_batch: Samples per step, to give the skip in samples too.
    """
    match parameters:
        case RollbackParameters():
            target = parameters.target
            where = f"step {count(target.step)} (snapshot {target.snapshot_id})"
            return _rollback(where, parameters.skip_steps, parameters.reduce_lr, global_batch)
        case RollbackRequest():
            where = _asked_target(parameters)
            return _rollback(where, parameters.skip_steps, parameters.reduce_lr, global_batch)
        case ReduceLrParameters():
            return cut_sentence(parameters)
    return _PLAIN[parameters.kind]


_PLAIN: Final[Mapping[CommandKind, str]] = {
    CommandKind.PAUSE: "pause at the next step boundary, until resume or stop",
    CommandKind.RESUME: "resume training after the pause",
    CommandKind.STOP: "end the training cleanly at the next step boundary",
    CommandKind.CHECKPOINT_NOW: "write a checkpoint at the next step boundary and continue",
}


def _asked_target(asked: RollbackRequest) -> str:
    if asked.snapshot_id is not None:
        return f"snapshot {asked.snapshot_id}"
    if asked.to_step is not None:
        return f"the newest healthy snapshot up to step {count(asked.to_step)}"
    return "the newest healthy snapshot"


def _rollback(
    where: str, skip_steps: int, cut: ReduceLrParameters | None, global_batch: int | None
) -> str:
    parts = [f"roll back to {where}"]
    if skip_steps:
        parts.append(f"skip {skipped_data(skip_steps, global_batch)}")
    if cut is not None:
        parts.append(cut_sentence(cut))
    return ", ".join(parts)


def skipped_data(skip_steps: int, global_batch: int | None) -> str:
    """Write how much data is skipped: `200 steps of data (12,800 samples)`."""
    text = f"{counted(skip_steps, 'step')} of data"
    if global_batch is not None:
        text += f" ({counted(skip_steps * global_batch, 'sample')})"
    return text


def cut_sentence(cut: ReduceLrParameters) -> str:
    """Describe a learning-rate reduction: `multiply the learning rate by 0.5 for 500 steps`."""
    text = f"multiply the learning rate by {exact(cut.factor)}"
    if cut.hold_steps is None:
        return f"{text} until changed"
    text += f" for {counted(cut.hold_steps, 'step')}"
    return (
        f"{text}, then ramp back over {counted(cut.ramp_steps, 'step')}" if cut.ramp_steps else text
    )

"""What the product says: every state, reason and order as a phrase for people, in one voice.

A phrase begins in lower case and has no full stop, so that it can stand after a colon. Labels are
the words of the protocol themselves; one word has one meaning everywhere.
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

PERSON_PREFIX: Final = "person:"

_PHRASES: Final[Mapping[type[StrEnum], Mapping[StrEnum, str]]] = {
    DecisionKind: {
        DecisionKind.WAIT: "waits",
        DecisionKind.ACT: "acts",
        DecisionKind.PROPOSE: "proposes",
        DecisionKind.HOLD: "holds back",
        DecisionKind.RESOLVE: "closes the incident",
        DecisionKind.ESCALATE: "calls a person",
    },
    DecisionReason: {
        DecisionReason.MAY_RECOVER: "it may recover by itself",
        DecisionReason.SECOND_SIGNAL_MISSING: "a second signal is missing",
        DecisionReason.COMMAND_IN_FLIGHT: "another command is under way",
        DecisionReason.WATCHING: "the intervention must prove itself",
        DecisionReason.DIVERGENCE: "the run is diverging",
        DecisionReason.PRECURSOR_CONFIRMED: "a second signal confirms a precursor",
        DecisionReason.RELAPSE: "it came back or did not get better",
        DecisionReason.DEADLINE_PASSED: "it did not recover in time",
        DecisionReason.COMMAND_FAILED: "the command before came to nothing",
        DecisionReason.MANUAL: "a person decided it",
        DecisionReason.MODE_OBSERVE: "the mode is observe",
        DecisionReason.MODE_PROPOSE: "the mode is propose",
        DecisionReason.BUDGET_SPENT: "the budget of interventions is spent",
        DecisionReason.COOLDOWN: "the cooldown is not over",
        DecisionReason.DISARMED: "all actions are disarmed",
        DecisionReason.SILENCED: "the rules are silenced",
        DecisionReason.NO_HEALTHY_SNAPSHOT: "no snapshot is healthy",
        DecisionReason.LADDER_EXHAUSTED: "the ladder is used up",
        DecisionReason.RECOVERED_BY_ITSELF: "it recovered by itself",
        DecisionReason.INTERVENTION_HELPED: "the intervention helped",
        DecisionReason.CLOSED_BY_PERSON: "a person closed it",
        DecisionReason.RUN_ENDED: "the run ended",
    },
    RejectReason: {
        RejectReason.PAST_ATTEMPT: "the run has gone on to a later attempt",
        RejectReason.UNKNOWN_SNAPSHOT: "the job does not hold this snapshot",
        RejectReason.SNAPSHOT_NOT_FINITE: "the snapshot has values that are not finite",
        RejectReason.EXPIRED: "its time ran out before it was taken up",
        RejectReason.UNSUPPORTED: "the job cannot do this",
        RejectReason.NOT_PAUSED: "the job is not paused",
        RejectReason.RUN_ENDING: "the run is ending",
        RejectReason.RESTORE_FAILED: "the restore broke off",
        RejectReason.READ_BACK_MISMATCH: "the job read back something else than was ordered",
        RejectReason.STALE_FENCE: "it came from a collector that no longer judges the run",
        RejectReason.REFUSED_BY_PERSON: "a person refused it",
        RejectReason.SUPERSEDED: "a later decision took its place",
    },
    AuditAction: {
        AuditAction.RUN_REGISTERED: "the job registered",
        AuditAction.RUN_STATE_CHANGED: "the state of the run changed",
        AuditAction.RUN_MODE_CHANGED: "the mode changed",
        AuditAction.RUN_RULES_CHANGED: "the rules changed",
        AuditAction.RUN_DELETED: "the run was deleted",
        AuditAction.ATTEMPT_STARTED: "an attempt began",
        AuditAction.INCIDENT_CHANGED: "the incident changed",
        AuditAction.DECISION_MADE: "the policy decided",
        AuditAction.COMMAND_CREATED: "a command was given",
        AuditAction.COMMAND_CHANGED: "the command moved on",
        AuditAction.DISARMED: "all actions were disarmed",
        AuditAction.ARMED: "actions were armed again",
        AuditAction.SILENCE_CREATED: "a rule was silenced",
        AuditAction.SILENCE_REMOVED: "a silence was ended",
    },
    AuditReason: {
        AuditReason.REGISTERED: "it registered",
        AuditReason.REPORTED_BY_JOB: "the job says so",
        AuditReason.NO_SIGN_OF_LIFE: "there was no sign of life",
        AuditReason.HEARD_AGAIN: "the job was heard again",
        AuditReason.APPROVED_BY_PERSON: "a person approved it",
        AuditReason.REQUESTED_BY_PERSON: "a person asked for it",
        AuditReason.SENT_TO_JOB: "it was sent to the job",
        AuditReason.CARRIED_OUT: "the job carried it out",
        AuditReason.CARRIED_OUT_LATE: "the job carried it out after it had been given up",
        AuditReason.FAILED_IN_JOB: "it failed in the job",
        AuditReason.RULES_REPLACED: "other rules judge the run from here on",
    },
    CommandKind: {
        CommandKind.ROLLBACK: "roll back",
        CommandKind.REDUCE_LR: "cut the learning rate",
        CommandKind.PAUSE: "pause",
        CommandKind.RESUME: "resume",
        CommandKind.STOP: "stop",
        CommandKind.CHECKPOINT_NOW: "write a checkpoint",
    },
    CommandState: {
        CommandState.PROPOSED: "waits for a person to approve or reject it",
        CommandState.PENDING: "waits for the job to ask for it",
        CommandState.DELIVERED: "the job has it",
        CommandState.APPLIED: "the job carried it out",
        CommandState.REJECTED: "refused",
        CommandState.FAILED: "the job tried and failed",
        CommandState.EXPIRED: "not taken up in time",
        CommandState.CANCELLED: "taken back before the job had it",
    },
    IncidentState: {
        IncidentState.OPEN: "the policy looks for what to do",
        IncidentState.ACTING: "a command is under way",
        IncidentState.WATCHING: "the intervention must prove itself",
        IncidentState.RESOLVED: "over",
    },
    AlertState: {
        AlertState.INACTIVE: "quiet",
        AlertState.PENDING: "seen, not yet for long enough",
        AlertState.FIRING: "firing",
        AlertState.RESOLVED: "quiet again",
    },
    Severity: {
        Severity.NOTICE: "worth knowing; nothing is done about it alone",
        Severity.PRECURSOR: "a sign that comes before a divergence",
        Severity.DIVERGENCE: "the run is being lost",
    },
    Mode: {
        Mode.OBSERVE: "watches and tells; gives no command",
        Mode.PROPOSE: "proposes commands; a person approves or rejects each",
        Mode.AUTO: "gives commands by itself, within budget and cooldown",
    },
    RunState: {
        RunState.RUNNING: "trains",
        RunState.PAUSED: "stands still until it is told to go on",
        RunState.FINISHED: "ended as planned",
        RunState.FAILED: "ended with an error",
        RunState.LOST: "gives no sign of life",
    },
    MarkerKind: {
        MarkerKind.RESUME: "the job resumed",
        MarkerKind.ROLLBACK: "the job rolled back",
        MarkerKind.LR_CHANGE: "the learning rate changed",
        MarkerKind.PHASE_CHANGE: "a new phase began",
    },
    PreviewWarning: {
        PreviewWarning.TARGET_NOT_HEALTHY: "the snapshot is not, or not yet, held to be healthy",
        PreviewWarning.TARGET_ABANDONED: "the snapshot is on a branch that a rollback has left",
        PreviewWarning.RUN_NOT_REPORTING: (
            "the run gives no sign of life: nobody may be there to take the command"
        ),
        PreviewWarning.RUN_PAUSED: "the run is paused, and stays so after the command",
        PreviewWarning.RUN_NOT_PAUSED: "the run is not paused: the job will refuse",
        PreviewWarning.OTHER_COMMAND_IN_FLIGHT: "another command is on its way to the job",
        PreviewWarning.COMMAND_PROPOSED: "another command waits for a person",
        PreviewWarning.GLOBAL_BATCH_UNKNOWN: (
            "the job did not say how many samples a step takes: the skip cannot be counted"
        ),
    },
}


def phrase(member: StrEnum) -> str:
    """Say what a state, a reason or a kind means."""
    return _PHRASES[type(member)][member]


def label(member: StrEnum) -> str:
    """Name a state or kind by the protocol's own word."""
    return member.value.replace("_", " ")


def reason_phrase(reason: str) -> str:
    """Say the reason that a command carries as text: a decision's, or a refusal's."""
    for kind in (DecisionReason, RejectReason, AuditReason):
        if reason in set(kind):
            return phrase(kind(reason))
    return reason.replace("_", " ")


def actor_name(actor: str) -> str:
    """Name who did something: `the policy`, `the job`, `the collector`, or a person's name."""
    return actor.removeprefix(PERSON_PREFIX) if is_person(actor) else f"the {actor}"


def is_person(actor: str) -> bool:
    """Tell whether a person did it."""
    return actor.startswith(PERSON_PREFIX)


def capital(text: str) -> str:
    """Begin with a capital letter; the rest stays as it is."""
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
    """Say in full what a command tells the job to do.

    Args:
        parameters: Of a command, or of one that a person thinks of.
        global_batch: Samples of one step, so that what is skipped can be told in samples too.
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
    CommandKind.PAUSE: "stand still at the next step boundary, until resume or stop",
    CommandKind.RESUME: "go on after the pause",
    CommandKind.STOP: "end the training in good order at the next step boundary",
    CommandKind.CHECKPOINT_NOW: "write a checkpoint at the next step boundary, and train on",
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
    """Say how much data is skipped: `200 steps of data (12,800 samples)`."""
    text = f"{counted(skip_steps, 'step')} of data"
    if global_batch is not None:
        text += f" ({counted(skip_steps * global_batch, 'sample')})"
    return text


def cut_sentence(cut: ReduceLrParameters) -> str:
    """Say a cut: `multiply the learning rate by 0.5 for 500 steps, back over 500 steps`."""
    text = f"multiply the learning rate by {exact(cut.factor)}"
    if cut.hold_steps is None:
        return f"{text} until told otherwise"
    text += f" for {counted(cut.hold_steps, 'step')}"
    return f"{text}, then back over {counted(cut.ramp_steps, 'step')}" if cut.ramp_steps else text

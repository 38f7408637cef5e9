"""What a person does: each deed has a reason, goes to the collector, and comes back in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, TypeVar

from dash.development.base_component import Component
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from dashboard.client import CollectorClient
from dashboard.components.command import preview_panel
from dashboard.components.deeds import MODE, ORDER, SILENCE, WORD
from dashboard.components.forms import (
    ALL_RULES,
    MAX_SILENCE_MINUTES,
    REASON_MISSING,
    Verb,
    command_form,
    error_notice,
    mode_form,
    silence_form,
    word_form,
)
from dashboard.errors import DashboardError, MissingError, RefusedError
from dashboard.words.phrases import capital, command_sentence
from stabilizer.protocol.batches import Step
from stabilizer.protocol.commands import (
    Command,
    CommandKind,
    CommandState,
    ReduceLrParameters,
    RollbackParameters,
)
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.queries import (
    CommandCreate,
    CommandRequest,
    ControlUpdate,
    Note,
    RollbackRequest,
    SilenceCreate,
)
from stabilizer.protocol.views import CommandPreviewRequest

Model = TypeVar("Model", bound=BaseModel)
_REQUEST: Final[TypeAdapter[CommandRequest]] = TypeAdapter(CommandRequest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a deed."""

    told: str
    """In words; a problem if it was not done."""
    done: bool

    def status(self) -> Component | None:
        """What the dialog shows: nothing when it closes."""
        return None if self.done else error_notice(self.told)


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderFields:
    """What stands in the form of a command by hand; numbers may be empty text."""

    kind: str | None
    snapshot: str | None = None
    skip_steps: Any = None
    with_cut: bool | None = None
    factor: Any = None
    hold_steps: Any = None
    ramp_steps: Any = None

    def request(self) -> CommandRequest:
        """Read the command that is meant.

        Raises:
            ValueError: Something cannot be used; the message names the field.
        """
        if self.kind == CommandKind.REDUCE_LR:
            return self._cut()
        if self.kind == CommandKind.ROLLBACK:
            return self._rollback()
        try:
            return _REQUEST.validate_python({"kind": self.kind})
        except ValidationError as error:
            raise ValueError("choose a command") from error

    def _rollback(self) -> RollbackRequest:
        if not self.snapshot:
            raise ValueError("choose a snapshot to go back to")
        fields = {
            "snapshot_id": self.snapshot,
            "skip_steps": _or_none(self.skip_steps) or 0,
            "reduce_lr": self._cut() if self.with_cut else None,
        }
        return _checked(RollbackRequest, fields)

    def _cut(self) -> ReduceLrParameters:
        fields = {
            "factor": _or_none(self.factor),
            "hold_steps": _or_none(self.hold_steps),
            "ramp_steps": _or_none(self.ramp_steps) or 0,
        }
        return _checked(ReduceLrParameters, fields)


def _or_none(value: Any) -> Any:  # noqa: ANN401  what a number field holds
    return None if value in ("", None) else value


def _checked(model: type[Model], fields: Mapping[str, Any]) -> Model:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise ValueError(_first(error)) from error


def _first(error: ValidationError) -> str:
    """Say the first thing that is wrong: which field, and what is allowed."""
    found = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in found["loc"]).replace("_", " ")
    return f"{name}: {found['msg'].removeprefix('Value error, ').lower()}"


# opening


async def open_word(client: CollectorClient, verb: Verb, command_id: str) -> Component:
    """Build the form for a word on a command.

    Raises:
        DashboardError: The collector cannot be asked, or has no such command.
    """
    command = await client.command(command_id)
    run = await client.run(command.run_id)
    preview = None
    if verb is Verb.APPROVE:
        try:
            preview = await client.preview_of(command_id)
        except (RefusedError, MissingError):
            preview = None  # approving it will be refused with the reason
    return word_form(WORD, verb, command, global_batch=run.global_batch, preview=preview)


async def open_order(client: CollectorClient, run_id: str) -> tuple[Component, int]:
    """Build the form for a command by hand; returns it with the attempt that is looked at.

    Raises:
        DashboardError: The collector cannot be asked, or has no such run.
    """
    run = await client.run(run_id)
    return command_form(ORDER, snapshots=await client.snapshots(run_id)), run.attempt


async def open_mode(client: CollectorClient, run_id: str) -> Component:
    """Build the form for the mode.

    Raises:
        DashboardError: The collector cannot be asked, or has no such run.
    """
    return mode_form(MODE, mode=(await client.run(run_id)).mode)


async def open_silence(client: CollectorClient, run_id: str) -> Component:
    """Build the form for a silence.

    Raises:
        DashboardError: The collector cannot be asked, or has no such run.
    """
    rules = await client.rules(run_id)
    run = await client.run(run_id)
    return silence_form(SILENCE, rules=[rule.name for rule in rules.health], step=run.step)


# looking ahead


async def preview_word(client: CollectorClient, command_id: str) -> Component:
    """Show what a stored command would do now, or why it cannot be approved any more."""
    try:
        return preview_panel(await client.preview_of(command_id))
    except DashboardError as error:
        return error_notice(_words(error))


async def preview_order(
    client: CollectorClient, run_id: str, attempt: int | None, fields: OrderFields
) -> Component:
    """Show what a command would do, or why it cannot be given."""
    try:
        request = CommandPreviewRequest(parameters=fields.request(), attempt=attempt)
        return preview_panel(await client.preview(run_id, request))
    except (ValueError, DashboardError) as error:
        return error_notice(_words(error))


# doing


async def give_word(
    client: CollectorClient, verb: Verb, command_id: str, reason: str | None
) -> Outcome:
    """Approve, reject or take back a command."""
    deed = {Verb.APPROVE: client.approve, Verb.REJECT: client.reject, Verb.CANCEL: client.cancel}
    try:
        command = await deed[verb](command_id, _read_reason(reason))
    except (ValueError, DashboardError) as error:
        return _not_done(error)
    past = {Verb.APPROVE: "Approved", Verb.REJECT: "Rejected", Verb.CANCEL: "Taken back"}
    return Outcome(told=f"{past[verb]}: {command_sentence(command.parameters)}", done=True)


async def give_order(
    client: CollectorClient,
    run_id: str,
    attempt: int | None,
    fields: OrderFields,
    reason: str | None,
) -> Outcome:
    """Give a command by hand; not while the same one is on its way, by a second click perhaps."""
    try:
        create = CommandCreate(
            parameters=fields.request(), reason=_read_reason(reason), attempt=attempt
        )
        if any(_is_same(create, one) for one in await client.commands(run_id)):
            return Outcome(told=_UNDER_WAY, done=False)
        command = await client.order(run_id, create)
    except (ValueError, DashboardError) as error:
        return _not_done(error)
    return Outcome(told=f"Sent: {command_sentence(command.parameters)}", done=True)


def _is_same(asked: CommandCreate, given: Command) -> bool:
    """Whether a command that is not settled does what is asked for, to the same attempt."""
    if given.is_settled or given.state is CommandState.PROPOSED:
        return False
    if asked.attempt not in (None, given.attempt):
        return False
    what, known = asked.parameters, given.parameters
    if isinstance(what, RollbackRequest) and isinstance(known, RollbackParameters):
        return (what.snapshot_id, what.skip_steps, what.reduce_lr) == (
            known.target.snapshot_id,
            known.skip_steps,
            known.reduce_lr,
        )
    return what == known


async def change_mode(
    client: CollectorClient, run_id: str, mode: str | None, reason: str | None
) -> Outcome:
    """Say how far the policy may go on a run."""
    try:
        why = _read_reason(reason)
        if mode not in set(Mode):
            return Outcome(told="Choose a mode", done=False)
        run = await client.set_mode(run_id, Mode(mode), why)
    except (ValueError, DashboardError) as error:
        return _not_done(error)
    return Outcome(told=f"The mode is {run.mode.value} now", done=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class SilenceFields:
    """What stands in the form of a silence."""

    rule: str | None
    end: str | None
    minutes: Any = None
    until_step: Any = None

    def ends(self, now: datetime) -> dict[str, Any]:
        """Read when it ends.

        Raises:
            ValueError: That cannot be used; the message names the field.
        """
        if self.end == "step":
            return {"until_step": _checked(_UntilStep, {"until_step": self.until_step}).until_step}
        time = _checked(_Minutes, {"time": self.minutes}).time
        return {"until": now + timedelta(minutes=time)}


class _Minutes(BaseModel):
    """Named as the form names it."""

    time: Annotated[float, Field(gt=0, le=MAX_SILENCE_MINUTES)]


class _UntilStep(BaseModel):
    """Likewise."""

    until_step: Step


async def silence_rule(
    client: CollectorClient,
    run_id: str,
    fields: SilenceFields,
    reason: str | None,
    now: datetime,
) -> Outcome:
    """Mute a rule for decisions on a run."""
    try:
        why = _read_reason(reason)
        if not fields.rule:
            return Outcome(told="Choose a rule", done=False)
        await client.silence(
            SilenceCreate(rule=fields.rule, run_id=run_id, reason=why, **fields.ends(now))
        )
    except (ValueError, DashboardError) as error:
        return _not_done(error)
    what = "every rule" if fields.rule == ALL_RULES else fields.rule
    return Outcome(told=f"Silenced: {what}", done=True)


async def end_silence(client: CollectorClient, silence_id: str, reason: str | None) -> Outcome:
    """End a silence before its time."""
    try:
        await client.end_silence(silence_id, _read_reason(reason))
    except (ValueError, DashboardError) as error:
        return _not_done(error)
    return Outcome(told="The silence has ended", done=True)


async def turn_switch(client: CollectorClient, disarmed: bool, reason: str | None) -> Outcome:
    """Disarm the policy of all runs, or arm it again."""
    try:
        await client.set_control(ControlUpdate(disarmed=disarmed, reason=_read_reason(reason)))
    except (ValueError, DashboardError) as error:
        return _not_done(error)
    return Outcome(told="Everything is disarmed" if disarmed else "Armed again", done=True)


def _read_reason(reason: str | None) -> str:
    """Read why.

    Raises:
        ValueError: There is no reason, or one that the audit log does not take.
    """
    if not reason or not reason.strip():
        raise ValueError(REASON_MISSING)
    return _checked(Note, {"reason": reason}).reason


def _not_done(error: ValueError | DashboardError) -> Outcome:
    return Outcome(told=_words(error), done=False)


def _words(error: ValueError | DashboardError) -> str:
    if isinstance(error, ValidationError):
        return capital(_first(error))
    if isinstance(error, DashboardError):
        return capital(error.message + _ADVICE.get(error.code, ""))
    return capital(str(error))


_UNDER_WAY: Final = (
    "The same command is on its way already: wait until the job has answered it, or take it back"
)
_ADVICE: Final[Mapping[str, str]] = {
    "past_attempt": ": it has gone on since this was opened. Close this and look again",
    "unknown_snapshot": ". Close this and look again",
}

"""What a person does: each deed has a reason, goes to the collector, and comes back in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from dash.development.base_component import Component
from pydantic import TypeAdapter, ValidationError

from dashboard.client import CollectorClient
from dashboard.components.command import preview_panel
from dashboard.components.deeds import MODE, ORDER, SILENCE, WORD
from dashboard.components.forms import (
    REASON_MISSING,
    Verb,
    command_form,
    error_notice,
    mode_form,
    silence_form,
    word_form,
)
from dashboard.components.words import capital, command_sentence
from dashboard.errors import DashboardError, MissingError, RefusedError
from stabilizer.protocol.commands import CommandKind, ReduceLrParameters
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.queries import (
    CommandCreate,
    CommandRequest,
    ControlUpdate,
    RollbackRequest,
    SilenceCreate,
)
from stabilizer.protocol.views import CommandPreviewRequest

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
        cut = self._cut() if self.kind == CommandKind.REDUCE_LR or self.with_cut else None
        if self.kind == CommandKind.REDUCE_LR and cut is not None:
            return cut
        if self.kind == CommandKind.ROLLBACK:
            if not self.snapshot:
                raise ValueError("choose a snapshot to go back to")
            fields = {
                "kind": self.kind,
                "snapshot_id": self.snapshot,
                "skip_steps": _or_none(self.skip_steps) or 0,
            }
            request = _checked(RollbackRequest, fields)
            return request.model_copy(update={"reduce_lr": cut})
        try:
            return _REQUEST.validate_python({"kind": self.kind})
        except ValidationError as error:
            raise ValueError("choose a command") from error

    def _cut(self) -> ReduceLrParameters:
        fields = {
            "factor": _or_none(self.factor),
            "hold_steps": _or_none(self.hold_steps),
            "ramp_steps": _or_none(self.ramp_steps) or 0,
        }
        return _checked(ReduceLrParameters, fields)


def _or_none(value: Any) -> Any:  # noqa: ANN401  what a number field holds
    return None if value in ("", None) else value


def _checked(model: Any, fields: Mapping[str, Any]) -> Any:  # noqa: ANN401  one of two models
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in found["loc"]).replace("_", " ")
        raise ValueError(f"{name}: {found['msg'].lower()}") from error


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


async def preview_order(
    client: CollectorClient, run_id: str, attempt: int | None, fields: OrderFields
) -> Component:
    """Show what a command would do, or why it cannot be given."""
    try:
        request = CommandPreviewRequest(parameters=fields.request(), attempt=attempt)
        return preview_panel(await client.preview(run_id, request))
    except ValueError as error:
        return error_notice(capital(str(error)))
    except DashboardError as error:
        return error_notice(error.message)


# doing


async def give_word(
    client: CollectorClient, verb: Verb, command_id: str, reason: str | None
) -> Outcome:
    """Approve, reject or take back a command."""
    if not _is_reason(reason):
        return Outcome(told=REASON_MISSING, done=False)
    deed = {Verb.APPROVE: client.approve, Verb.REJECT: client.reject, Verb.CANCEL: client.cancel}
    try:
        command = await deed[verb](command_id, str(reason))
    except DashboardError as error:
        return Outcome(told=error.message, done=False)
    what = command_sentence(command.parameters)
    past = {Verb.APPROVE: "Approved", Verb.REJECT: "Rejected", Verb.CANCEL: "Taken back"}
    return Outcome(told=f"{past[verb]}: {what}", done=True)


async def give_order(
    client: CollectorClient,
    run_id: str,
    attempt: int | None,
    fields: OrderFields,
    reason: str | None,
) -> Outcome:
    """Give a command by hand."""
    if not _is_reason(reason):
        return Outcome(told=REASON_MISSING, done=False)
    try:
        request = fields.request()
        create = CommandCreate(parameters=request, reason=str(reason), attempt=attempt)
        command = await client.order(run_id, create)
    except ValueError as error:
        return Outcome(told=capital(str(error)), done=False)
    except DashboardError as error:
        return Outcome(told=error.message, done=False)
    return Outcome(told=f"Sent: {command_sentence(command.parameters)}", done=True)


async def change_mode(
    client: CollectorClient, run_id: str, mode: str | None, reason: str | None
) -> Outcome:
    """Say how far the policy may go on a run."""
    if not _is_reason(reason):
        return Outcome(told=REASON_MISSING, done=False)
    if mode not in set(Mode):
        return Outcome(told="Choose a mode", done=False)
    try:
        run = await client.set_mode(run_id, Mode(mode), str(reason))
    except DashboardError as error:
        return Outcome(told=error.message, done=False)
    return Outcome(told=f"The mode is {run.mode.value} now", done=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class SilenceFields:
    """What stands in the form of a silence."""

    rule: str | None
    end: str | None
    minutes: Any = None
    until_step: Any = None


async def silence_rule(
    client: CollectorClient,
    run_id: str,
    fields: SilenceFields,
    reason: str | None,
    now: datetime,
) -> Outcome:
    """Mute a rule for decisions on a run."""
    if not _is_reason(reason):
        return Outcome(told=REASON_MISSING, done=False)
    try:
        create = _silence(run_id, fields, str(reason), now)
        await client.silence(create)
    except (ValueError, TypeError, OverflowError):
        return Outcome(told="Say how long: a number of minutes, or a step", done=False)
    except DashboardError as error:
        return Outcome(told=error.message, done=False)
    return Outcome(told=f"Silenced: {fields.rule}", done=True)


def _silence(run_id: str, fields: SilenceFields, reason: str, now: datetime) -> SilenceCreate:
    end: dict[str, Any] = (
        {"until_step": int(fields.until_step)}
        if fields.end == "step"
        else {"until": now + timedelta(minutes=float(fields.minutes))}
    )
    return SilenceCreate(rule=fields.rule or "", run_id=run_id, reason=reason, **end)


async def end_silence(client: CollectorClient, silence_id: str, reason: str | None) -> Outcome:
    """End a silence before its time."""
    if not _is_reason(reason):
        return Outcome(told=REASON_MISSING, done=False)
    try:
        await client.end_silence(silence_id, str(reason))
    except DashboardError as error:
        return Outcome(told=error.message, done=False)
    return Outcome(told="The silence has ended", done=True)


async def turn_switch(client: CollectorClient, disarmed: bool, reason: str | None) -> Outcome:
    """Disarm the policy of all runs, or arm it again."""
    if not _is_reason(reason):
        return Outcome(told=REASON_MISSING, done=False)
    try:
        await client.set_control(ControlUpdate(disarmed=disarmed, reason=str(reason)))
    except DashboardError as error:
        return Outcome(told=error.message, done=False)
    return Outcome(told="Everything is disarmed" if disarmed else "Armed again", done=True)


def _is_reason(reason: str | None) -> bool:
    return bool(reason and reason.strip())

"""Silence a rule on a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import dash_mantine_components as dmc
from dash import Dash, State, html
from dash.development.base_component import Component
from pydantic import BaseModel, Field

from dashboard import ids
from dashboard.actions.form import (
    RUN_ID,
    ActionResult,
    FormIds,
    build_dialog,
    form_body,
    on_open,
    on_submit,
    read_reason,
    validated,
    whole_number,
)
from dashboard.client import Collector, CollectorApi
from dashboard.errors import DashboardError
from stabilizer.clock import Clock
from stabilizer.protocol.batches import Step
from stabilizer.protocol.queries import SilenceCreate

FORM: Final = FormIds.named("silence")
RULE: Final = "silence-rule"
END: Final = "silence-end"
MINUTES: Final = "silence-minutes"
UNTIL_STEP: Final = "silence-until-step"

ALL_RULES: Final = "*"
MAX_MINUTES: Final = 7 * 24 * 60
"""A week: longer silences are forgotten."""
_SUGGESTED_STEPS: Final = 200


def dialog() -> list[Component]:
    """Build the closed dialog."""
    return [build_dialog(FORM, "Silence rule")]


def silence_form(rules: Sequence[str], step: int) -> Component:
    """Build the form.

    Args:
        rules: Names of the rules.
        step: Current step of the run.
    """
    data = [{"value": ALL_RULES, "label": "all rules"}]
    data += [{"value": rule, "label": rule} for rule in rules]
    rule = dmc.Select(
        id=RULE,
        label="Rule",
        description="Still evaluated and shown; the policy does not act on it",
        data=data,
        value=rules[0] if rules else ALL_RULES,
        searchable=True,
        allowDeselect=False,
        openOnFocus=False,
        **{"data-autofocus": True},
    )
    ends = [
        dmc.Radio(value="minutes", label="for a time"),
        dmc.Radio(value="step", label="until a step"),
    ]
    end = dmc.RadioGroup(
        html.Div(ends, className="options"), id=END, value="minutes", label="Duration"
    )
    minutes = whole_number(
        MINUTES,
        "Time",
        value=60,
        description="From now; at most a week",
        unit="min",
        least=1,
        most=MAX_MINUTES,
    )
    until_step = whole_number(
        UNTIL_STEP,
        "Until step",
        value=step + _SUGGESTED_STEPS,
        description="The silence ends after this step",
        unit="",
        least=step,
        most=2**53,
    )
    fields = (
        rule,
        end,
        html.Div(minutes, className="for-minutes"),
        html.Div(until_step, className="for-step"),
    )
    return html.Div(form_body(FORM, fields, submit="Silence rule"), className="silence-form")


@dataclass(frozen=True, kw_only=True, slots=True)
class SilenceFields:
    """Values of the form."""

    rule: str | None
    end: str | None
    minutes: Any = None
    until_step: Any = None

    def ends(self, now: datetime) -> dict[str, Any]:
        """Read the end.

        Raises:
            ValueError: A field is not valid; the message names it.
        """
        if self.end == "step":
            return {"until_step": validated(_UntilStep, {"until_step": self.until_step}).until_step}
        time = validated(_Minutes, {"time": self.minutes}).time
        return {"until": now + timedelta(minutes=time)}


class _Minutes(BaseModel):
    """Named as in the form."""

    time: Annotated[float, Field(gt=0, le=MAX_MINUTES)]


class _UntilStep(BaseModel):
    """Named as in the form."""

    until_step: Step


async def open_silence(client: CollectorApi, run_id: str) -> Component:
    """Build the form for a run.

    Raises:
        DashboardError: The collector is not reachable, or has no such run.
    """
    rules = await client.rules(run_id)
    run = await client.run(run_id)
    return silence_form([rule.name for rule in rules.health], run.step)


async def silence_rule(
    client: CollectorApi,
    run_id: str,
    fields: SilenceFields,
    reason: str | None,
    now: datetime,
) -> ActionResult:
    """Silence a rule on a run."""
    try:
        why = read_reason(reason)
        if not fields.rule:
            return ActionResult(message="Choose a rule", done=False)
        await client.silence(
            SilenceCreate(rule=fields.rule, run_id=run_id, reason=why, **fields.ends(now))
        )
    except (ValueError, DashboardError) as error:
        return ActionResult.refused(error)
    what = "all rules" if fields.rule == ALL_RULES else fields.rule
    return ActionResult(message=f"Silenced: {what}", done=True)


def register(app: Dash, collector: Collector, clock: Clock) -> None:
    """Register the callbacks."""

    async def build(run_id: str) -> Component:
        return await open_silence(collector.for_request(), run_id)

    async def submit(reason: str | None, fields: dict[str, Any], run_id: str) -> ActionResult:
        client = collector.for_request()
        return await silence_rule(client, run_id, SilenceFields(**fields), reason, clock.now())

    fields = {
        "rule": State(RULE, "value"),
        "end": State(END, "value"),
        "minutes": State(MINUTES, "value"),
        "until_step": State(UNTIL_STEP, "value"),
    }
    on_open(app, FORM, ids.OPEN_SILENCE, build)
    on_submit(app, FORM, {"fields": fields, "run_id": RUN_ID}, submit)

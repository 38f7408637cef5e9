"""What the demo reads from the collector while the job trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import TracebackType
from typing import Final, Self

import httpx
from pydantic import TypeAdapter

from stabilizer.protocol.commands import Command, CommandState, ReadBack, RollbackParameters
from stabilizer.protocol.decisions import Alert, AlertState, Decision, Incident
from stabilizer.protocol.queries import RunPage, SeriesData
from stabilizer.protocol.runs import Run

_ALERTS: Final = TypeAdapter(list[Alert])
_COMMANDS: Final = TypeAdapter(list[Command])
_INCIDENTS: Final = TypeAdapter(list[Incident])
_SERIES: Final = TypeAdapter(list[SeriesData])


class DemoClient:
    """Reads runs, alerts, incidents, commands and series.

    Args:
        url: Base address of the collector, for example `http://127.0.0.1:8000`.
        transport: For tests; None talks to the network.
    """

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(
            base_url=f"{url}/api/v1", transport=transport, timeout=30.0, trust_env=False
        )

    def run_named(self, name: str) -> Run | None:
        """Return the run of this name with its attempts, or None if it has not come yet."""
        page = RunPage.model_validate_json(self._get("/runs", name=name))
        found = [run for run in page.runs if run.name == name]
        return Run.model_validate_json(self._get(f"/runs/{found[0].id}")) if found else None

    def alerts(self, run_id: str) -> list[Alert]:
        """Return the alerts of a run."""
        return _ALERTS.validate_json(self._get(f"/runs/{run_id}/alerts", limit=1000))

    def incidents(self, run_id: str) -> list[Incident]:
        """Return the incidents of a run with their decisions."""
        return _INCIDENTS.validate_json(self._get(f"/runs/{run_id}/incidents"))

    def commands(self, run_id: str) -> list[Command]:
        """Return the commands of a run with what the job read back."""
        return _COMMANDS.validate_json(self._get(f"/runs/{run_id}/commands"))

    def series(self, run_id: str, names: Sequence[str]) -> list[SeriesData]:
        """Return all samples of the series, each attempt on its own."""
        return _SERIES.validate_json(self._get(f"/runs/{run_id}/series/data", series=list(names)))

    def _get(self, path: str, **params: str | int | list[str]) -> bytes:
        answer = self._http.get(path, params=params)
        answer.raise_for_status()
        return answer.content

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line of the story."""

    arm: str
    attempt: int
    step: int
    what: str
    """happens, seen, decided, done or refused."""
    text: str


@dataclass(slots=True)
class ArmWatch:
    """Keep track of the events already reported of one arm."""

    arm: str
    ahead: list[tuple[int, str]] = field(default_factory=list)
    """What will happen to it: step and text, in order."""
    told_alerts: set[tuple[str, int, int]] = field(default_factory=set)
    reported_decisions: dict[str, int] = field(default_factory=dict)
    told_commands: dict[str, CommandState] = field(default_factory=dict)

    def news(
        self,
        step: int,
        alerts: Sequence[Alert],
        incidents: Sequence[Incident],
        commands: Sequence[Command],
    ) -> list[Event]:
        """Return the events not yet reported, in the order of the run.

        At one step: what happens before what is seen, decided and done.
        """
        events = [
            *self._happenings(step),
            *self._alerts(alerts),
            *self._decisions(incidents),
            *self._commands(commands),
        ]
        return sorted(events, key=lambda event: (event.attempt, event.step))

    def _happenings(self, step: int) -> Iterator[Event]:
        while self.ahead and self.ahead[0][0] <= step:
            at, text = self.ahead.pop(0)
            yield Event(arm=self.arm, attempt=1, step=at, what="happens", text=text)

    def _alerts(self, alerts: Sequence[Alert]) -> Iterator[Event]:
        fired = [alert for alert in alerts if alert.state is not AlertState.PENDING]
        fired = [alert for alert in fired if alert.firing_step is not None]
        fired.sort(key=_rule_and_place)
        for place, group in groupby(fired, key=_rule_and_place):
            if place not in self.told_alerts:
                self.told_alerts.add(place)
                _, attempt, step = place
                text = _seen(list(group))
                yield Event(arm=self.arm, attempt=attempt, step=step, what="seen", text=text)

    def _decisions(self, incidents: Sequence[Incident]) -> Iterator[Event]:
        for incident in incidents:
            reported = self.reported_decisions.get(incident.id, 0)
            self.reported_decisions[incident.id] = len(incident.decisions)
            for decision in incident.decisions[reported:]:
                text = f"incident {incident.number}: {_decided(decision)}"
                yield Event(
                    arm=self.arm,
                    attempt=decision.attempt,
                    step=decision.step,
                    what="decided",
                    text=text,
                )

    def _commands(self, commands: Sequence[Command]) -> Iterator[Event]:
        for command in commands:
            if self.told_commands.get(command.id) == command.state:
                continue
            self.told_commands[command.id] = command.state
            if command.is_settled:
                yield self._settled(command)

    def _settled(self, command: Command) -> Event:
        result = command.result
        applied = command.state is CommandState.APPLIED
        step = command.issued_step or 0
        if result is not None and result.applied_step is not None:
            step = result.applied_step
        text = f"{_named(command)}: {command.state}"
        if result is not None and result.read_back is not None:
            text += f"; the job reads back {_read_back(result.read_back)}"
        elif result is not None and result.reason is not None:
            text += f" ({result.reason}: {result.message})"
        what = "done" if applied else "refused"
        return Event(arm=self.arm, attempt=command.attempt, step=step, what=what, text=text)


def _rule_and_place(alert: Alert) -> tuple[str, int, int]:
    return alert.rule, alert.attempt, alert.firing_step or 0


def _seen(alerts: Sequence[Alert]) -> str:
    worst = max(alerts, key=lambda alert: alert.score or 0.0)
    text = f"rule {worst.rule} ({worst.severity})"
    text += f" on {worst.series}" if len(alerts) == 1 else f" on {len(alerts)} series"
    if worst.score is not None and worst.threshold is not None:
        text += f", score {worst.score:.3g} past {worst.threshold:.3g}"
    return text


def _decided(decision: Decision) -> str:
    text = f"{decision.kind} because {decision.reason.replace('_', ' ')}"
    return f"{text}: {decision.message}" if decision.message else text


def _named(command: Command) -> str:
    if isinstance(command.parameters, RollbackParameters):
        target = command.parameters.target.step
        return f"rollback to step {target}, skip {command.parameters.skip_steps} steps of data"
    return command.kind.replace("_", " ")


def _read_back(read_back: ReadBack) -> str:
    rates = ", ".join(f"{rate:.3g}" for rate in read_back.lr.values())
    text = f"step {read_back.step}, lr {rates} (scale {read_back.lr_scale:.3g})"
    if read_back.skipped_samples:
        text += f", {read_back.skipped_samples} samples skipped"
    return text

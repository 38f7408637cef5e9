"""The report as one HTML file that needs nothing else: picture, table, and the story in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Final

from trainer.demo.options import ARMS, Arm
from trainer.demo.report import ArmOutcome, DemoCheck
from trainer.demo.watch import ArmWatch, Event

_PAGE: Final = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
_LAST: Final = 10**9
"""After the last step of every arm: include everything that happened."""


def write_page(
    path: Path,
    report: Mapping[str, Any],
    checks: Sequence[DemoCheck],
    arms: Mapping[str, ArmOutcome],
    picture: str,
) -> None:
    """Write the report.

    Args:
        path: Of the HTML file.
        report: As `build_report` builds it.
        checks: The verdict.
        arms: By name.
        picture: The plot as SVG text.
    """
    passed = all(check.passed for check in checks)
    page = _PAGE.substitute(
        verdict="The loop closed" if passed else "The loop did not close",
        mood="good" if passed else "bad",
        seed=report["seed"],
        seconds=report["seconds"],
        tail=report["final_loss_steps"],
        picture=picture[picture.index("<svg") :],
        arms="\n".join(_arm_row(arm, report) for arm in ARMS),
        lost=report["steps_lost"],
        delay=_or_none(report["steps_to_action"]),
        checks="\n".join(_check(check) for check in checks),
        stories="\n".join(_story(arm, arms[arm.name]) for arm in ARMS),
    )
    path.write_text(page, encoding="utf-8")


def _arm_row(arm: Arm, report: Mapping[str, Any]) -> str:
    loss = report["arms"][arm.name]["final_loss"]
    base = report["arms"][ARMS[0].name]["final_loss"]
    against = f"{loss / base - 1:+.1%}" if loss is not None and base else "-"
    commands = [
        command["kind"].replace("_", " ")
        for command in report["commands"]
        if command["arm"] == arm.name and command["state"] == "applied"
    ]
    shown = "not finite" if loss is None else f"{loss:.4f}"
    cells = (arm.title, shown, against, ", ".join(commands) or "none")
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _check(check: DemoCheck) -> str:
    mark, word = ("good", "yes") if check.passed else ("bad", "no")
    return f'<li><b class="{mark}">{word}</b> {escape(check.name)}: {escape(check.found)}</li>'


def _story(arm: Arm, outcome: ArmOutcome) -> str:
    watch = ArmWatch(arm.name)
    events = watch.news(_LAST, outcome.alerts, outcome.incidents, outcome.commands)
    if not events:
        return f"<h3>{escape(arm.title)}</h3><p>Nothing was seen, nothing was done.</p>"
    rows = "\n".join(_rows(events))
    head = "<tr><th>step</th><th></th><th>what</th></tr>"
    return f"<h3>{escape(arm.title)}</h3><table class='story'>{head}{rows}</table>"


def _rows(events: Iterable[Event]) -> Iterable[str]:
    for event in events:
        yield (
            f'<tr class="{escape(event.what)}"><td>{event.step}</td>'
            f"<td>{escape(event.what)}</td><td>{escape(event.text)}</td></tr>"
        )


def _or_none(value: int | None) -> str:
    return "none" if value is None else str(value)

"""The outcome of the demo as a plot and as one HTML page."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stabilizer.protocol.commands import Command, RollbackParameters
from trainer.demo.options import ARMS, PROTECTED, Arm, Disturbances
from trainer.demo.report import ArmOutcome, DemoCheck, applied
from trainer.demo.watch import ArmWatch, Event

# Okabe and Ito's colours: distinguishable with every kind of colour vision.
COLOURS: Final = {"undisturbed": "#0072B2", "unprotected": "#D55E00", "protected": "#009E73"}


def draw(arms: Mapping[str, ArmOutcome], disturbances: Disturbances, path: Path) -> None:
    """Draw the losses of the arms over steps and write the picture to `path`, as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _figure(arms, disturbances).savefig(path)


def draw_svg(arms: Mapping[str, ArmOutcome], disturbances: Disturbances) -> str:
    """Draw the same as SVG text."""
    text = io.StringIO()
    _figure(arms, disturbances).savefig(text, format="svg")
    return text.getvalue()


def _figure(arms: Mapping[str, ArmOutcome], disturbances: Disturbances) -> Figure:
    figure = Figure(figsize=(11, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for arm in ARMS:
        _draw_arm(axes, arms[arm.name], COLOURS[arm.name], arm.title)
    _draw_disturbances(axes, disturbances)
    for command in applied(arms[PROTECTED.name].commands):
        _draw_command(axes, command)
    _limit(axes, arms)
    axes.set_xlabel("step (completed optimizer steps)")
    axes.set_ylabel("training loss (nats)")
    axes.set_title("A run diverges, is seen, is rewound, and learns on")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", frameon=False)
    return figure


def _draw_arm(axes: Axes, outcome: ArmOutcome, colour: str, title: str) -> None:
    axes.plot(outcome.curve.steps, outcome.curve.losses, color=colour, linewidth=1.3, label=title)
    for steps, losses in outcome.curve.abandoned:
        axes.plot(steps, losses, color=colour, linewidth=1.0, alpha=0.35, linestyle="--")


def _draw_disturbances(axes: Axes, disturbances: Disturbances) -> None:
    axes.axvspan(disturbances.bad_from, disturbances.bad_until, color="#999999", alpha=0.25)
    axes.annotate(
        "bad documents",
        (disturbances.bad_from, 0.995),
        xycoords=("data", "axes fraction"),
        ha="right",
        va="top",
        rotation=90,
        fontsize=8,
        color="#555555",
    )
    axes.axvline(disturbances.restart_at, color="#999999", linestyle=":")
    axes.annotate(
        "learning rate restarts too high",
        (disturbances.restart_at, 0.995),
        xycoords=("data", "axes fraction"),
        ha="right",
        va="top",
        rotation=90,
        fontsize=8,
        color="#555555",
    )


def _draw_command(axes: Axes, command: Command) -> None:
    if command.result is None or command.result.applied_step is None:
        return
    step = command.result.applied_step
    colour = COLOURS[PROTECTED.name]
    axes.axvline(step, color=colour, linewidth=0.8)
    label = command.kind.replace("_", " ")
    if isinstance(command.parameters, RollbackParameters):
        label = f"rollback {step} to {command.parameters.target.step}"
    axes.annotate(
        label,
        (step, 0.55),
        xycoords=("data", "axes fraction"),
        rotation=90,
        ha="left",
        va="center",
        fontsize=8,
        color=colour,
    )


def _limit(axes: Axes, arms: Mapping[str, ArmOutcome]) -> None:
    """Keep a loss of thousands from flattening the rest: the axis ends above the first losses."""
    losses = [loss for outcome in arms.values() for loss in outcome.curve.losses]
    finite = [loss for loss in losses if math.isfinite(loss)]
    start = max(
        (outcome.curve.losses[0] for outcome in arms.values() if outcome.curve.losses), default=1.0
    )
    if finite:
        axes.set_ylim(0, min(max(finite), 1.5 * start) * 1.05)


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

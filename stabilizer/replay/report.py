"""The report of a backtest: one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from stabilizer.logs.stream import LogStep
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.series import Catalog
from stabilizer.replay.job import ReplayResult
from stabilizer.rules.policy.loss_level import loss_column

_MAX_POINTS: Final = 4000
_WIDTH, _HEIGHT, _MARGIN = 960, 220, 8
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #1c2430; background: #fff; }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.15rem; }
p { margin: .25rem 0; }
svg { width: 100%; height: auto; border: 1px solid #d5dae1; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #e4e8ee;
  vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.line { fill: none; stroke: #2c5d8f; stroke-width: 1.2; }
.alert { fill: #e8a33d; opacity: .25; }
.command { stroke: #b3261e; stroke-width: 1.5; }
.quiet { color: #5b6675; }
@media (prefers-color-scheme: dark) {
  body { color: #e3e8ef; background: #12161c; } svg, th, td { border-color: #333c48; }
  .line { stroke: #7fb2e5; } .quiet { color: #9aa5b4; } .command { stroke: #ff8a80; } }
"""


@dataclass(slots=True)
class LossTrace:
    """The loss of a run, thinned: each point is the largest of its steps."""

    points: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss)."""
    num_nonfinite: int = 0
    _stride: int = 1
    _seen: int = 0

    def watch(self, steps: Iterable[LogStep]) -> Iterator[LogStep]:
        """Pass steps on and note their loss."""
        for step in steps:
            for catalog, block in step.frames:
                self._note(step.step, catalog, block)
            yield step

    def _note(self, step: int, catalog: Catalog, block: FrameBlock) -> None:
        found = loss_column(catalog)
        if found is None or not (block.present is None or block.present[0][found[0]]):
            return
        value = float(block.values[0][found[0]])
        if not math.isfinite(value):
            self.num_nonfinite += 1
            return
        if self._seen % self._stride == 0:
            self.points.append((step, value))
        elif value > self.points[-1][1]:
            self.points[-1] = (step, value)
        self._seen += 1
        if len(self.points) > _MAX_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            self.points = [max(pair, key=lambda point: point[1]) for pair in pairs]
            self._stride *= 2
            self._seen = 0


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """A run with what the report shows of it."""

    name: str
    result: ReplayResult
    trace: LossTrace
    problems: str
    """What could not be used of the log; empty if all could."""


def render_report(runs: Sequence[ReportedRun], rules: str) -> str:
    """Write the report.

    Args:
        runs: In the order in which they are shown.
        rules: Name of the rule file.
    """
    num_commands = sum(len(run.result.proposals) for run in runs)
    num_calm = sum(not run.result.proposals for run in runs)
    body = "\n".join(_section(run) for run in runs)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Backtest of {len(runs)} runs</title><style>{_STYLE}</style>"
        f"<h1>Backtest</h1><p>{len(runs)} runs, rules of {escape(rules)}: {num_commands} commands; "
        f"{num_calm} runs without any.</p>"
        '<p class="quiet">Line: loss. Bands: alerts. Vertical lines: commands. A replay cannot '
        "change the past: the data continue as they were after a command.</p>"
        f"{body}</html>\n"
    )


def _section(run: ReportedRun) -> str:
    result = run.result
    steps = f"{result.rows} steps, {result.first_step} to {result.last_step}"
    counts = f"{len(result.alerts)} alerts, {len(result.proposals)} commands"
    lines = [f"<h2>{escape(run.name)}</h2>", f"<p>{steps}; {counts}.</p>"]
    if run.problems:
        lines.append(f'<p class="quiet">In the log: {escape(run.problems)}.</p>')
    lines.append(_chart(run))
    lines.append(
        _table(
            ("step", "command", "what", "why", "rules"),
            [
                (p.step, str(p.kind), p.text, str(p.reason).replace("_", " "), ", ".join(p.rules))
                for p in result.proposals
            ],
        )
    )
    lines.append(
        _table(
            ("fired", "resolved", "rule", "severity", "series"),
            [
                (a.step, a.resolved_step or "", a.rule, str(a.severity), a.series)
                for a in result.alerts[:200]
            ],
        )
    )
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = [
        "<tr>"
        + "".join(
            f'<td class="number">{cell}</td>'
            if isinstance(cell, int)
            else f"<td>{escape(str(cell))}</td>"
            for cell in row
        )
        + "</tr>"
        for row in rows
    ]
    return f"<table><tr>{cells}</tr>{''.join(lines)}</table>"


def _chart(run: ReportedRun) -> str:
    points = run.trace.points
    if len(points) < 2:
        return '<p class="quiet">No loss to draw.</p>'
    first, last = points[0][0], max(step for step, _ in points)
    values = sorted(value for _, value in points)
    low, high = values[0], values[min(len(values) - 1, int(0.998 * len(values)))]

    def x(step: float) -> float:
        return _MARGIN + (_WIDTH - 2 * _MARGIN) * (step - first) / max(1, last - first)

    def y(value: float) -> float:
        share = (min(value, high) - low) / ((high - low) or 1.0)
        return _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * share

    bands = [
        f'<rect class="alert" x="{x(a.step):.1f}" y="0" height="{_HEIGHT}" '
        f'width="{max(1.0, x(a.resolved_step or last) - x(a.step)):.1f}">'
        f"<title>{escape(a.rule)} at step {a.step}</title></rect>"
        for a in run.result.alerts
    ]
    commands = [
        f'<line class="command" x1="{x(p.step):.1f}" x2="{x(p.step):.1f}" y1="0" y2="{_HEIGHT}">'
        f"<title>{p.kind} at step {p.step}</title></line>"
        for p in run.result.proposals
    ]
    line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    label = f"Loss of {run.name}, {low:.4g} to {high:.4g}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'{"".join(bands)}<polyline class="line" points="{line}"/>{"".join(commands)}</svg>'
        f'<p class="quiet">{escape(label)}.</p>'
    )

"""How the story looks on a terminal, and in a log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.demo.options import ARMS, DemoOptions
from trainer.demo.report import DemoCheck
from trainer.demo.watch import Event

_STYLES = {
    "seen": "yellow",
    "decided": "cyan",
    "done": "bold green",
    "refused": "bold red",
    "happens": "magenta",
}


class StoryTeller:
    """Prints the story line by line; a line is one thing that happened, at a step, on an arm."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)

    def opening(self, options: DemoOptions, url: str, page: str) -> None:
        """Say what will happen."""
        disturbances = options.disturbances
        self._console.rule("Stabilizer: a run diverges, is seen, is rewound, and learns on")
        self._console.print(f"Follow it on the page: [bold]{page}[/]", soft_wrap=True)
        self._console.print(f"Collector: {url} (API documentation: {url}/docs)", soft_wrap=True)
        self._console.print(
            f"Three training jobs of {options.steps} steps, seed {options.seed}, same rules:"
        )
        for arm in ARMS:
            self._console.print(f"  [bold]{arm.name:<12}[/] {arm.title} (mode {arm.mode})")
        self._console.print(
            f"What happens to the disturbed ones: bad documents at steps {disturbances.bad_from} "
            f"to {disturbances.bad_until}, a learning-rate schedule that restarts too high at "
            f"step {disturbances.restart_at}.\n"
        )

    def report(self, event: Event) -> None:
        """Print one event."""
        line = Text.assemble(
            (f"{event.arm:<12}", "bold"),
            f" step {event.step:>5}  ",
            (f"{event.what:<8}", _STYLES.get(event.what, "")),
            f" {event.text}",
        )
        self._console.print(line, soft_wrap=True)

    def progress(self, steps: Mapping[str, int], total: int) -> None:
        """Print the step of each arm."""
        parts = ", ".join(f"{name} {step}/{total}" for name, step in steps.items())
        self._console.print(f"[dim]... {parts}[/]")

    def closing(self, report: Mapping[str, Any], checks: Sequence[DemoCheck], page: str) -> None:
        """Print the table, the checks and where the files are."""
        self._console.print()
        self._console.print(_table(report))
        for check in checks:
            mark = "[green]yes[/]" if check.passed else "[bold red]NO[/]"
            self._console.print(f"  {mark:<4} {check.name}: {check.found}")
        passed = all(check.passed for check in checks)
        self._console.print(
            f"\n{'[bold green]The loop closed' if passed else '[bold red]The loop did not close'}"
            f"[/] in {report['seconds']} s. Report: {page}"
        )

    def note(self, text: str) -> None:
        """Print a plain line."""
        self._console.print(text)


def _table(report: Mapping[str, Any]) -> Table:
    base = report["arms"]["undisturbed"]["final_loss"]
    table = Table(title=f"Mean loss of the last {report['final_loss_steps']} steps")
    table.add_column("arm")
    for column in ("final loss", "against undisturbed", "commands applied"):
        table.add_column(column, justify="right")
    for arm in ARMS:
        loss = report["arms"][arm.name]["final_loss"]
        commands = [
            command["kind"]
            for command in report["commands"]
            if command["arm"] == arm.name and command["state"] == "applied"
        ]
        table.add_row(
            arm.title,
            "not finite" if loss is None else f"{loss:.4f}",
            f"{loss / base - 1:+.1%}" if _both(loss, base) else "-",
            ", ".join(commands) or "none",
        )
    table.add_section()
    table.add_row("steps lost to rollbacks", str(report["steps_lost"]))
    table.add_row("steps from first precursor to action", str(report["steps_to_action"]))
    return table


def _both(loss: float | None, base: float | None) -> bool:
    return loss is not None and base is not None and math.isfinite(loss) and base != 0

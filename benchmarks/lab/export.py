"""The runs of the lab as labelled logs: runs/*.csv and events.csv, as the scorers of rules read."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.lab.storage import StoredRun

_EVENTS: Final = (
    *("run", "step_start", "step_end", "verdict", "kind"),
    *("outcome", "human_action", "basis"),
)
_CALM: Final = 100
"""Steps after the onset of a harmless change in which an intervention disturbs."""


def export_run(folder: Path, run: StoredRun) -> None:
    """Write the series of a run: columns are series in their text form; a resume is an attempt."""
    path = folder / "runs" / f"{run.name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    resumes = [step for step, kind in run.facts["markers"] if kind == "resume"]
    series = run.series
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["attempt", "step", *(str(key) for key in series.keys)])
        for row, step in enumerate(series.steps.tolist()):
            attempt = 1 + sum(step > resume for resume in resumes)
            cells = [
                f"{value:.7g}" if present else ""
                for value, present in zip(series.values[row], series.present[row], strict=True)
            ]
            writer.writerow([attempt, step, *cells])


def event_of(run: StoredRun, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what should have been done in a run, from its row of outcomes; None if it is healthy.

    Where nothing on the grid rescues, acting and waiting are both right.
    """
    if run.facts["kind"] == "healthy":
        return None
    onset, end = run.facts["onset"], run.facts["steps"]
    verdict = {"beyond_rescue": "either"}.get(row["verdict"], row["verdict"])
    return {
        "run": run.name,
        "step_start": onset,
        "step_end": min(end, onset + _CALM) if verdict == "ignore" else end,
        "verdict": verdict,
        "kind": run.facts["change"],
        "outcome": f"{row['untouched']:.3g} of the reference if untouched",
        "human_action": row["best_action"] if verdict == "act" else "",
        "basis": "computed",
    }


def write_events(folder: Path, events: list[dict[str, Any]]) -> None:
    """Write the labels."""
    with (folder / "events.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, _EVENTS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(events)

"""Follows growing logs: each is judged as a live run in mode `observe`, or sent to a collector."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from stabilizer.errors import StabilizerError, TelemetryError
from stabilizer.logs.formats import LogFormat
from stabilizer.logs.stream import LogStep, LogStream
from stabilizer.logs.tail import LogTail
from stabilizer.protocol.decisions import AlertState, DecisionKind, Mode
from stabilizer.replay.job import ReplayedJob
from stabilizer.replay.upload import RunUploader
from stabilizer.rules.loader import RuleFile
from stabilizer.rules.outcome import AlertChange, IncidentChange, Outcome

PrintLine = Callable[[str], None]
"""Prints a line for the user."""


class Follower(Protocol):
    """Processes the steps of a followed run."""

    def take(self, step: LogStep) -> None:
        """Process a step."""
        ...

    def settle(self) -> None:
        """Process what waits: there is nothing new for now. May be tried again after an error."""
        ...

    def finish(self) -> None:
        """End: the run is no longer followed."""
        ...


class LocalFollower:
    """Judges a run in this process and prints alerts and decisions."""

    def __init__(self, name: str, rules: RuleFile, print_line: PrintLine) -> None:
        self._name = name
        self._print = print_line
        self._job = ReplayedJob(rules, Mode.OBSERVE, self._report)

    def take(self, step: LogStep) -> None:
        """Judge a step."""
        if step.starts_attempt and self._job.result.rows:
            self._print(f"{self._name}: the job continues from step {step.step}")
        self._job.show(step)

    def settle(self) -> None:
        """Do nothing: every step is judged at once."""

    def finish(self) -> None:
        """Print a summary."""
        result = self._job.result
        if not result.rows:
            self._print(f"{self._name}: no step that can be read")
            return
        counts = f"{result.rows} steps, {len(result.alerts)} alerts"
        self._print(f"{self._name}: followed to step {result.last_step}: {counts}")

    def _report(self, step: int, out: Outcome) -> None:
        for line in (*map(describe_alert, out.alerts), *map(describe_decision, out.incidents)):
            if line:
                self._print(f"{self._name} step {step}: {line}")


class UploadingFollower:
    """Sends a run to a collector, which judges it."""

    def __init__(self, name: str, uploader: RunUploader, print_line: PrintLine) -> None:
        self._name = name
        self._uploader = uploader
        self._print = print_line
        self._is_announced = False

    def take(self, step: LogStep) -> None:
        """Send a step, with its neighbours."""
        self._uploader.put(step)

    def settle(self) -> None:
        """Send what waits."""
        self._uploader.flush()
        if self._uploader.run_id is not None and not self._is_announced:
            self._is_announced = True
            self._print(f"{self._name}: run {self._uploader.run_id}")

    def finish(self) -> None:
        """Send what waits and end the run."""
        self._uploader.finish("its log is no longer followed")


def describe_alert(change: AlertChange) -> str:
    """Describe an alert that fires or is resolved; empty for other changes."""
    rule, series = change.key.rule, change.key.series
    if change.state is AlertState.FIRING:
        value = "" if change.value is None else f" at {change.value:.6g}"
        where = f" on {series}" if series else ""  # a rule on other rules has no series
        return f"{change.severity}: {rule} fires{where}{value}"
    return f"{rule} is over" if change.state is AlertState.RESOLVED else ""


def describe_decision(incident: IncidentChange) -> str:
    """Describe what the policy decides; empty if it decides nothing."""
    decision = incident.decision
    if decision is None:
        return ""
    if decision.kind is DecisionKind.RESOLVE:
        return f"incident {incident.number} is resolved"
    return f"incident {incident.number}: {decision.kind}: {decision.message or decision.reason}"


@dataclass(slots=True)
class FollowedRun:
    """The files of one run, in order, and its follower."""

    name: str
    follower: Follower
    stream: LogStream = field(default_factory=LogStream)
    tails: list[LogTail] = field(default_factory=list)

    def poll(self) -> int:
        """Process what has been added; return the number of rows.

        Raises:
            TelemetryError: The collector cannot be reached: nothing more is read until it can.
        """
        self.follower.settle()
        num_rows = 0
        for tail in self.tails:
            for row in tail.poll():
                num_rows += 1
                self._take(self.stream.push(row))
        if not num_rows:
            self._take(self.stream.flush())  # the step is complete: nothing more of it came
        self.follower.settle()
        return num_rows

    def finish(self) -> None:
        """Process the last step and end."""
        try:
            self._take(self.stream.flush())
            self.follower.finish()
        finally:
            self.close()

    def close(self) -> None:
        """Close the files."""
        for tail in self.tails:
            tail.close()

    def _take(self, steps: Iterator[LogStep]) -> None:
        for step in steps:
            self.follower.take(step)


class LogWatcher:
    """Finds logs by paths and patterns, also new ones, and follows all of them.

    Args:
        patterns: Files, folders (their event files are one run) and glob patterns.
        format_: Of all of them; None to find it out for each.
        make: Makes the follower of a run from its name and its path.
        print_line: Prints a line for the user.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        format_: LogFormat | None,
        make: Callable[[str, Path], Follower],
        print_line: PrintLine,
    ) -> None:
        self._patterns = patterns
        self._format = format_
        self._make = make
        self._print = print_line
        self._runs: dict[Path, FollowedRun] = {}
        self._failed: set[Path] = set()
        self._known: set[Path] = set()
        self._is_reachable = True

    @property
    def num_runs(self) -> int:
        """Runs that are followed now."""
        return len(self._runs)

    def poll(self) -> int:
        """Find new logs and process what has been added; return the number of rows."""
        self._find()
        num_rows = 0
        for place, run in list(self._runs.items()):
            try:
                num_rows += run.poll()
                self._is_reachable = True
            except TelemetryError as error:
                if self._is_reachable:
                    self._print(f"{run.name}: {error.message}; trying again")
                self._is_reachable = False
            except StabilizerError as error:
                self._print(f"{run.name}: no longer followed: {error.message}")
                self._failed.add(place)
                self._runs.pop(place).close()
        return num_rows

    def finish(self) -> None:
        """End all runs."""
        for run in self._runs.values():
            try:
                run.finish()
            except StabilizerError as error:
                self._print(f"{run.name}: {error.message}")

    def _find(self) -> None:
        for path in self._paths():
            place = path.parent if "tfevents" in path.name else path
            if path in self._known or place in self._failed:
                continue
            self._known.add(path)
            tail = LogTail(path, self._format)
            if place not in self._runs:
                name = place.name if place.is_dir() else path.stem
                self._runs[place] = FollowedRun(name, self._make(name, place))
                self._print(f"following {place}")
            self._runs[place].tails.append(tail)

    def _paths(self) -> Iterator[Path]:
        for pattern in self._patterns:
            path = Path(pattern)
            if path.is_dir():
                yield from sorted(file for file in path.rglob("*tfevents*") if file.is_file())
            elif glob.has_magic(pattern):
                yield from map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207  may be absolute
            else:
                yield path

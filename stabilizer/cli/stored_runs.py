"""Runs that a collector has stored, as the rules saw them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stabilizer.cli.failures import needs_extra
from stabilizer.errors import ConfigurationError
from stabilizer.logs.stream import LogStep
from stabilizer.protocol.batches import Marker, MarkerKind
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.runs import RunState, Tick
from stabilizer.protocol.series import Catalog

if TYPE_CHECKING:
    from stabilizer.collector.storage.repositories import Repositories

_SQLITE: Final = b"SQLite format 3\x00"


def database_url(path: str) -> str | None:
    """Return the URL of a database; None if the path names something else."""
    if path.startswith(("sqlite:", "postgresql")):
        return path
    try:
        with Path(path).open("rb") as file:
            is_database = file.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return None
    return f"sqlite:///{Path(path).absolute()}" if is_database else None


@contextmanager
def open_repositories(url: str) -> Iterator[Repositories]:
    """Open a database to read it; a collector may be running on it.

    Raises:
        ConfigurationError: The URL is invalid, or the schema is not that of this version.
        StorageError: The database cannot be read.
    """
    with needs_extra("collector"):
        from sqlalchemy.orm import Session  # noqa: PLC0415  an extra

        from stabilizer.collector.storage import engine, migrate  # noqa: PLC0415  an extra
        from stabilizer.collector.storage.repositories import Repositories  # noqa: PLC0415  an extra
    opened = engine.build_engine(engine.parse_url(url))
    try:
        revision, newest = migrate.current(opened), migrate.head()
        if revision != newest:
            raise ConfigurationError(
                f"the database is at revision {revision}; this version needs {newest}: "
                "run `stabilizer db upgrade`"
            )
        with Session(opened) as session:
            yield Repositories(session)
    finally:
        opened.dispose()


def stored_names(repositories: Repositories, chosen: str | None) -> dict[str, str]:
    """Return id to name of the stored runs.

    Args:
        repositories: Of the database.
        chosen: Id or name of one run; None takes all.

    Raises:
        ConfigurationError: There is no such run.
    """
    runs = [repositories.runs.require(run_id) for run_id in repositories.runs.ids(list(RunState))]
    names = {run.id: run.name for run in runs if chosen in {None, run.id, run.name}}
    if not names:
        raise ConfigurationError(f"run is {chosen!r}; the database has no such run")
    return names


def stored_steps(repositories: Repositories, run_id: str) -> Iterator[LogStep]:
    """Read a run in the order in which its batches came: the order in which it was judged."""
    attempts = {attempt.number: attempt for attempt in repositories.attempts.of_run(run_id)}
    ticks = repositories.rules.ticks(run_id)
    markers = sorted(repositories.attempts.markers(run_id), key=lambda marker: marker.at)
    catalogs: dict[str, Catalog] = {}
    waiting: list[Marker] = []
    begun = 0
    for batch, blocks in repositories.frames.evaluated_after(run_id, 0):
        for block in blocks:
            if block.catalog not in catalogs:
                catalogs[block.catalog] = repositories.catalogs.load(block.catalog)
        while markers and markers[0].at <= batch.received_at:  # they came with this batch
            found = markers.pop(0)
            waiting.append(Marker(kind=found.kind, step=found.step, text=found.text))
        attempt = attempts[batch.attempt]
        num_ticks = sum(row.version < batch.version for row in ticks)
        shown, ticks = ticks[:num_ticks], ticks[num_ticks:]
        passed = tuple(Tick(r.step, r.silent, r.stalled, r.behind) for r in shown)
        for step, frames in _by_step(blocks):
            starts, begun = batch.attempt != begun, batch.attempt
            due = tuple(marker for marker in waiting if marker.step <= step)
            waiting = [marker for marker in waiting if marker.step > step]
            yield LogStep(
                attempt=batch.attempt,
                starts_attempt=starts,
                step=step,
                time=float(frames[0].times[0]),
                frames=tuple((catalogs[frame.catalog], frame) for frame in frames),
                from_step=attempt.from_step if starts else None,
                reason=MarkerKind(attempt.reason),
                markers=due,
                ticks=passed,
            )
            passed = ()


def _by_step(blocks: list[FrameBlock]) -> Iterator[tuple[int, list[FrameBlock]]]:
    """Split blocks into single frames, by step."""
    steps: dict[int, list[FrameBlock]] = {}
    for block in blocks:
        for index in range(len(block)):
            one = slice(index, index + 1)
            present = None if block.present is None else block.present[one]
            frame = FrameBlock(
                block.catalog, block.steps[one], block.times[one], block.values[one], present
            )
            steps.setdefault(int(block.steps[index]), []).append(frame)
    yield from sorted(steps.items())

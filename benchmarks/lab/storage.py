"""Runs of the lab on disk: an .npz of series and curves for each run, and its rows of outcomes.

A run that something happened to holds its own rows only; those from before are its twin's, and
`load_run` joins them. Files appear whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.lab.groups import LabRun
from benchmarks.lab.measuring import Series
from stabilizer.protocol.series import SeriesKey

FORMAT: Final = 1
HEALTHY: Final = "nothing"
"""The change of a run to which nothing happened."""


@dataclass(frozen=True)
class StoredRun:
    """A run as it was stored.

    Args:
        name: Its name.
        facts: What is known of it: family, split, optimizer, change, onset, markers and so on.
        series: What the agent would have sent, from the first step.
        curves: Held-out losses, untouched (`""`) and of every fork (`action@start`), by step.
    """

    name: str
    facts: dict[str, Any]
    series: Series
    curves: dict[str, dict[int, float]]


def path_of(folder: Path, name: str) -> Path:
    """Return where a run is stored."""
    return folder / "runs" / f"{name}.npz"


def save_run(folder: Path, run: LabRun, facts: Mapping[str, Any]) -> None:
    """Store a run."""
    path = path_of(folder, run.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    forks = run.truth.forks if run.truth is not None else []
    curves = {"": run.curve} | {f"{fork.action.name}@{fork.start}": fork.curve for fork in forks}
    header = {
        "format": FORMAT,
        "facts": dict(facts),
        "series": [str(key) for key in run.series.keys],
        "curves": list(curves),
    }
    steps = [np.array(list(curve), np.int32) for curve in curves.values()]
    losses = [np.array(list(curve.values()), np.float32) for curve in curves.values()]
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        np.savez_compressed(
            file,
            header=np.frombuffer(json.dumps(header).encode(), np.uint8),
            steps=run.series.steps.astype(np.int32),
            values=_shuffled(run.series.values),
            present=np.packbits(run.series.present),
            curve_lengths=np.array([len(each) for each in steps]),
            curve_steps=np.concatenate(steps),
            curve_losses=np.concatenate(losses),
        )
    temporary.replace(path)


def load_run(folder: Path, name: str) -> StoredRun:
    """Read a run, with its twin's rows before its own.

    Raises:
        FileNotFoundError: It, or its twin, is not there.
        ValueError: It has another format.
    """
    run = _read(path_of(folder, name))
    if run.facts["change"] == HEALTHY:
        return run
    twin = _read(path_of(folder, run.facts["twin"]))
    series = _joined(twin.series, run.series, run.facts["onset"])
    return StoredRun(name, run.facts, series, run.curves)


def list_runs(folder: Path) -> list[str]:
    """Return the names of the stored runs."""
    return sorted(path.stem for path in (folder / "runs").glob("*.npz"))


def iterate(folder: Path, split: str | None = None) -> Iterator[StoredRun]:
    """Yield the stored runs, of one split or of both."""
    for name in list_runs(folder):
        run = load_run(folder, name)
        if split in (None, run.facts["split"]):
            yield run


def _read(path: Path) -> StoredRun:
    with np.load(path) as file:
        header = json.loads(file["header"].tobytes())
        if header["format"] != FORMAT:
            raise ValueError(f"{path}: format {header['format']}; allowed: {FORMAT}")
        keys = [SeriesKey.parse(text) for text in header["series"]]
        steps = file["steps"].astype(np.int64)
        shape = (len(steps), len(keys))
        present = np.unpackbits(file["present"], count=shape[0] * shape[1])
        series = Series(
            keys,
            steps,
            _unshuffled(file["values"], shape),
            present.reshape(shape).astype(np.bool_),
        )
        ends = np.cumsum(file["curve_lengths"])[:-1]
        parts = zip(
            header["curves"],
            np.split(file["curve_steps"], ends),
            np.split(file["curve_losses"], ends),
            strict=True,
        )
        curves = {
            name: dict(zip(at.tolist(), losses.tolist(), strict=True)) for name, at, losses in parts
        }
    return StoredRun(path.stem, header["facts"], series, curves)


def _joined(twin: Series, own: Series, onset: int) -> Series:
    keys = list(dict.fromkeys([*twin.keys, *own.keys]))
    column = {key: number for number, key in enumerate(keys)}
    earlier = twin.steps <= onset
    rows = int(earlier.sum())
    values = np.zeros((rows + len(own.steps), len(keys)), np.float32)
    present = np.zeros(values.shape, np.bool_)
    for part, kept, place in ((twin, earlier, slice(0, rows)), (own, ..., slice(rows, None))):
        columns = [column[key] for key in part.keys]
        values[place, columns] = part.values[kept]
        present[place, columns] = part.present[kept]
    return Series(keys, np.concatenate([twin.steps[earlier], own.steps]), values, present)


def _shuffled(values: np.ndarray) -> np.ndarray:
    """Order float32 by series, then by significance of byte, which compresses by a third more."""
    turned = np.ascontiguousarray(values.T, "<f4")
    return np.ascontiguousarray(turned.view(np.uint8).reshape(-1, 4).T)


def _unshuffled(planes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    flat = np.ascontiguousarray(planes.T).view("<f4").reshape(shape[1], shape[0])
    return np.ascontiguousarray(flat.T)

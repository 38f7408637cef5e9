"""A window of a run's stream, from the ledger in the run's folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from stabilizer.errors import ConfigurationError
from trainer.config import RunConfig, load_config
from trainer.data import (
    CorpusTokenizer,
    DocumentReader,
    StreamFaults,
    open_reader,
    open_tokenizer,
    open_training_stream,
)
from trainer.data.records import LEDGER_FOLDER, LedgerEntry, read_ledger
from trainer.faults import BadDocuments, CorruptedShard, RepeatedDocuments, fault_of

Unit: TypeAlias = Literal["step", "sample"]
UNITS: Final[tuple[Unit, ...]] = ("step", "sample")
_WINDOW: Final = re.compile(r"(\d{1,15}):(\d{1,15})")
MAX_SAMPLES: Final = 100_000  # more than a user will read


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` to before `end`."""

    start: int
    """First step (from 1) or sample (from 0)."""
    end: int
    """End of the window, exclusive."""
    unit: Unit
    """What is counted."""

    def __str__(self) -> str:
        return f"{self.unit}s {self.start} to {self.end - 1}"

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.start <= number < self.end

    def samples(self, per_step: int) -> range:
        """Return the positions of a run that skipped nothing and was never rewound.

        Args:
            per_step: Samples of one optimizer step over all ranks.
        """
        if self.unit == "sample":
            return range(self.start, self.end)
        return range((self.start - 1) * per_step, (self.end - 1) * per_step)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A document that a run has read, or would read."""

    sample_id: str
    """Which document."""
    source: str
    """Where it is from."""
    position: int
    """Of its sequence in the stream."""
    step: int | None = None
    """For which step it was read; None: the ledger does not know of it."""
    attempt: int | None = None
    """In which attempt."""
    loss: float | None = None
    """Its mean loss at that step, where it was recorded."""


def parse_window(text: str, unit: str) -> Window:
    """Read FROM:TO, without the end.

    Args:
        text: As the user types it.
        unit: step or sample.

    Raises:
        ConfigurationError: It is something else, empty or absurdly long.
    """
    match = _WINDOW.fullmatch(text.strip())
    if unit not in UNITS:
        raise ConfigurationError(f"--by: {unit!r} cannot be used; allowed: {', '.join(UNITS)}")
    first = 1 if unit == "step" else 0
    if match is None or not first <= int(match[1]) < int(match[2]):
        raise ConfigurationError(
            f"--window: {text!r} cannot be used; allowed: FROM:TO, FROM at least {first} and below "
            "TO, which is not part of it"
        )
    window = Window(int(match[1]), int(match[2]), "step" if unit == "step" else "sample")
    if window.end - window.start > MAX_SAMPLES:
        raise ConfigurationError(
            f"--window: {text!r} cannot be used; allowed: at most {MAX_SAMPLES} {unit}s"
        )
    return window


_CONFIG_FILE: Final = "config.yaml"
_MAX_STRETCHES: Final = 5  # of steps, in a sentence


@dataclass(frozen=True, slots=True)
class SkippedWindow:
    """Samples that were skipped on command."""

    attempt: int
    """In which attempt."""
    step: int
    """The first step behind them."""
    start: int
    """First position."""
    end: int
    """End position, exclusive."""


class RunFolder:
    """A run's configuration, and its ledger where there is one."""

    def __init__(self, config: RunConfig, ledger: Path | None) -> None:
        """Take a configuration, and where the ledger is."""
        self.config = config
        self._ledger = ledger

    @classmethod
    def open(cls, folder: Path, overrides: Sequence[str] = ()) -> RunFolder:
        """Open the folder that a run wrote to (training.out).

        Args:
            folder: The folder.
            overrides: `a.b=value`, for what has moved since.

        Raises:
            ConfigurationError: It is none.
        """
        file = folder / _CONFIG_FILE
        if not file.is_file():
            raise ConfigurationError(
                f"--run: {folder} cannot be used; allowed: a folder that a run wrote to "
                f"(training.out), with {_CONFIG_FILE}"
            )
        return cls(load_config(recipe=str(file), overrides=overrides), folder / LEDGER_FOLDER)

    @property
    def samples_per_step(self) -> int:
        """Samples of one optimizer step, over all ranks and microbatches."""
        training = self.config.training
        return self.config.data.batch_size * training.accumulate * training.processes

    def entries(self) -> Iterator[LedgerEntry]:
        """Yield the ledger's entries, oldest first; nothing where there is none."""
        yield from read_ledger(self._ledger) if self._ledger is not None else ()

    def skipped_windows(self) -> list[SkippedWindow]:
        """Return the windows that were skipped, as rank 0 saw them, oldest first."""
        return [
            SkippedWindow(entry.attempt, entry.step, start, end)
            for entry in self.entries()
            if entry.rank == 0
            for start, end in entry.skipped_windows
        ]

    def occurrences(self, window: Window, *, attempt: int | None = None) -> list[Occurrence]:
        """Return the documents of a window, in the order of the stream.

        What the ledger knows is taken from it, and the newest attempt counts. Positions that it
        does not know of, such as those that were skipped, are read from the stream.

        Args:
            window: By step or sample.
            attempt: Only what was read in this attempt.

        Raises:
            ConfigurationError: The attempt is not in the ledger, or the corpus cannot be read.
        """
        recorded = self._recorded(window, attempt)
        if attempt is not None:
            if not recorded:
                raise ConfigurationError(
                    f"--attempt: {attempt} cannot be used; allowed: an attempt of which the ledger "
                    f"knows {window}"
                )
            return recorded
        if window.unit == "step" and recorded:
            return recorded
        known = {occurrence.position for occurrence in recorded}
        unknown = [p for p in window.samples(self.samples_per_step) if p not in known]
        return sorted([*recorded, *self._planned(unknown)], key=lambda each: each.position)

    def gaps(self, window: Window, *, attempt: int | None = None) -> str:
        """Return a sentence on the steps that the ledger lacks; empty: none, or nothing is by step.

        Args:
            window: As for `occurrences`.
            attempt: As for `occurrences`.
        """
        if window.unit != "step" or self._ledger is None:
            return ""
        absent, partial = self._lost(window, attempt)
        if len(absent) == window.end - window.start:
            return (
                f"The ledger does not know {window}: shown is what the stream holds there for a "
                "run that never skipped anything and was never rewound."
            )
        texts = []
        if absent:
            texts.append(f"Not in the ledger: {_steps(absent)}; their documents are not here.")
        if partial:
            texts.append(f"Of {_steps(partial)} the ledger has lost what some ranks read.")
        return " ".join(texts)

    def remark(self) -> str:
        """Return sentences on faults that changed the data of this run; empty: none."""
        faults, texts = self.config.faults, []
        bad, corrupted = fault_of(faults, BadDocuments), fault_of(faults, CorruptedShard)
        if bad is not None:
            texts.append(
                f"In this run the text at samples {bad.first_sample} to {bad.last_sample} was "
                "replaced by garbage (faults.bad_documents); shown is the corpus."
            )
        if corrupted is not None:
            texts.append(
                f"This run read a damaged copy of {corrupted.shard} "
                "(faults.corrupted_shard); shown is the corpus."
            )
        return " ".join(texts)

    def reader(self) -> DocumentReader:
        """Open the documents of the run, to be read by id."""
        return open_reader(self.config.data, seed=self.config.training.seed)

    def tokenizer(self) -> CorpusTokenizer:
        """Read the tokenizer of the run."""
        return open_tokenizer(self.config.data)

    def _recorded(self, window: Window, attempt: int | None) -> list[Occurrence]:
        by_position: dict[int, list[Occurrence]] = {}
        steps: dict[int, int] = {}
        for entry in self.entries():
            if attempt not in (None, entry.attempt):
                continue
            if window.unit == "step" and entry.step not in window:
                continue
            steps[entry.step] = entry.attempt
            by_position |= {  # entries come oldest first: the newest one stays
                position: found
                for position, found in _occurrences(entry)
                if window.unit == "step" or position in window
            }
        return [
            each
            for _, found in sorted(by_position.items())
            for each in found
            if window.unit == "sample" or each.attempt == steps[each.step or 0]
        ]

    def _lost(self, window: Window, attempt: int | None) -> tuple[list[int], list[int]]:
        """Return the steps that are not in the ledger, and those that some ranks' files lack."""
        ranks: dict[int, set[int]] = {}
        known: dict[int, tuple[int, set[int]]] = {}
        for entry in self.entries():  # oldest first: the newest attempt stays
            ranks.setdefault(entry.attempt, set()).add(entry.rank)
            if entry.step not in window or attempt not in (None, entry.attempt):
                continue
            if known.get(entry.step, (0, ()))[0] != entry.attempt:
                known[entry.step] = entry.attempt, set()
            known[entry.step][1].add(entry.rank)
        absent = [step for step in range(window.start, window.end) if step not in known]
        partial = [step for step, (which, read) in sorted(known.items()) if read < ranks[which]]
        return absent, partial

    def _planned(self, positions: Iterable[int]) -> Iterator[Occurrence]:
        positions = list(positions)
        if not positions:
            return
        stream = open_training_stream(
            self.config.data,
            self.tokenizer(),
            image_size=self.config.model.vision.image_size,
            seed=self.config.training.seed,
            fault=self._position_fault(),
        )
        for position in positions:
            sample = stream.read(position).sample
            for sample_id, source in zip(sample.sample_ids, sample.sources, strict=True):
                yield Occurrence(sample_id, source, position)

    def _position_fault(self) -> StreamFaults:
        return StreamFaults(position=fault_of(self.config.faults, RepeatedDocuments))


def _steps(numbers: Sequence[int]) -> str:
    """Write steps that ascend as "steps 3 to 5, 9", the first stretches of them."""
    starts = [n for i, n in enumerate(numbers) if not i or numbers[i - 1] != n - 1]
    ends = [n for n, after in zip(numbers, [*numbers[1:], -1], strict=True) if after != n + 1]
    texts = [
        str(start) if start == end else f"{start} to {end}"
        for start, end in zip(starts, ends, strict=True)
    ]
    more = ["and so on"] if len(texts) > _MAX_STRETCHES else []
    return f"step{'s' if len(numbers) > 1 else ''} {', '.join(texts[:_MAX_STRETCHES] + more)}"


def _occurrences(entry: LedgerEntry) -> list[tuple[int, list[Occurrence]]]:
    by_row: dict[int, list[Occurrence]] = {row: [] for row in range(len(entry.positions))}
    losses = entry.losses or (None,) * len(entry.sample_ids)
    documents = zip(entry.sample_ids, entry.sources, entry.rows, losses, strict=True)
    for sample_id, source, row, loss in documents:
        occurrence = Occurrence(
            sample_id, source, entry.positions[row], entry.step, entry.attempt, loss
        )
        by_row[row].append(occurrence)
    return [(entry.positions[row], found) for row, found in by_row.items()]

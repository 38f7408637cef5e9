r"""Logs as text: lines that a training framework prints, found by a pattern.

Lines that do not match are what programs print besides, and no mistake. Formats, as the frameworks
print them:

- Megatron-LM: `iteration 51/ 2000 | ... | lm loss: 1.96E+00 | grad norm: 30.855 | ...`
- torchtitan: `step: 10  loss: 10.7069  grad_norm: 1.2  memory: 30.99GiB(32.62%)  tps: 7,034`
- nanoGPT: `iter 10: loss 4.2, time 85.2ms, mfu 9.4%` and `step 250: train loss 2.1, val loss 2.2`
- DeepSpeed: `[Rank 0] step=10, skipped=0, lr=[0.0001], mom=[...]` and
  `steps: 10 loss: 5.5508 iter time (s): 0.936 samples/sec: 136.7`

A pattern of the user's own is a regular expression with the named group `step`; every other named
group is a series: `Step (?P<step>\d+) .* loss=(?P<loss>\S+)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from stabilizer.errors import ConfigurationError
from stabilizer.logs.rows import LineParser, LogRow, parse_number, parse_step

_NUMBER: Final = r"[-+]?(?:nan|inf(?:inity)?|\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+)"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PIPED = re.compile(rf"\|\s*([A-Za-z][^:|]*?):\s*({_NUMBER})", re.IGNORECASE)
_SPACED = re.compile(rf"([A-Za-z_][\w.]*(?: time \(s\)| loss|/sec)?):\s*({_NUMBER})", re.IGNORECASE)
_LISTED = re.compile(rf"([A-Za-z_][\w ]*?) ({_NUMBER})(ms|s|%)?(?:,|\s*$)", re.IGNORECASE)

Fields = Callable[[re.Match[str], str], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class TextPattern:
    """Lines of one format.

    Args:
        line: Matches a line of interest; its group `step` is the step.
        fields: Reads the values of such a line.
    """

    line: re.Pattern[str]
    fields: Fields


def _pairs(pattern: re.Pattern[str]) -> Fields:
    def read(match: re.Match[str], text: str) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for name, cell, *_ in pattern.findall(text, match.end("step")):
            number = _number(cell)
            if number is not None:
                found.setdefault(name.strip(), number)
        return found

    return read


def _number(cell: str) -> float | None:
    return parse_number(cell.replace(",", ""))


def _megatron(match: re.Match[str], text: str) -> Mapping[str, float]:
    found = dict(_pairs(_PIPED)(match, text))
    milliseconds = found.pop("elapsed time per iteration (ms)", None)
    seconds = found.pop("elapsed time per iteration (s)", None)
    if milliseconds is not None:
        seconds = milliseconds / 1000
    if seconds is not None:
        found["step_seconds"] = seconds
    return found


def _nanogpt(match: re.Match[str], text: str) -> Mapping[str, float]:
    found = dict(_pairs(_LISTED)(match, text))
    if "time" in found:
        found["step_seconds"] = found.pop("time") / (1000 if "ms" in text else 1)
    return found


def _nanogpt_evaluation(match: re.Match[str], text: str) -> Mapping[str, float]:
    """Read the losses of an evaluation: that on training data is none of the training loss."""
    found = _pairs(_LISTED)(match, text)
    return {f"eval_{name.replace(' ', '_')}": value for name, value in found.items()}


def _deepspeed_pipeline(match: re.Match[str], text: str) -> Mapping[str, float]:
    found = dict(_pairs(_SPACED)(match, text))
    if "iter time (s)" in found:
        found["step_seconds"] = found.pop("iter time (s)")
    return found


def _groups(match: re.Match[str], _text: str) -> Mapping[str, float]:
    cells = {name: cell for name, cell in match.groupdict().items() if name != "step" and cell}
    numbers = {name: _number(cell.strip("[]() ")) for name, cell in cells.items()}
    return {name: number for name, number in numbers.items() if number is not None}


PATTERNS: Final[Mapping[str, tuple[TextPattern, ...]]] = {
    "megatron": (TextPattern(re.compile(r"\biteration\s+(?P<step>\d+)/\s*\d+\s*\|"), _megatron),),
    "torchtitan": (
        TextPattern(
            re.compile(r"(?<!validate )\bstep:\s*(?P<step>\d+)\s+loss:\s"), _pairs(_SPACED)
        ),
    ),
    "nanogpt": (
        TextPattern(re.compile(r"\biter (?P<step>\d+): loss "), _nanogpt),
        TextPattern(re.compile(r"\bstep (?P<step>\d+): train loss "), _nanogpt_evaluation),
    ),
    "deepspeed": (
        TextPattern(
            re.compile(rf"\bstep=(?P<step>\d+), skipped=\d+, lr=\[?(?P<lr>{_NUMBER})"), _groups
        ),
        TextPattern(
            re.compile(r"\bsteps: (?P<step>\d+) loss: .*iter time \(s\):"), _deepspeed_pipeline
        ),
    ),
}
"""Patterns by name of the format."""


class TextParser(LineParser):
    """Parses the lines that match one of several patterns."""

    def __init__(self, patterns: tuple[TextPattern, ...]) -> None:
        super().__init__()
        self._patterns = patterns
        self._columns: dict[tuple[str, ...], tuple[str, ...]] = {}

    def parse_line(self, text: str, *, is_last: bool) -> Iterator[LogRow]:
        """Parse a line, and what a progress bar has overwritten in it."""
        for piece in _ANSI.sub("", text).split("\r"):
            yield from self._parse_piece(piece, is_last=is_last)

    def _parse_piece(self, text: str, *, is_last: bool) -> Iterator[LogRow]:
        for pattern in self._patterns:
            match = pattern.line.search(text)
            if match is None:
                continue
            step, values = parse_step(match["step"]), pattern.fields(match, text)
            if step is None or not values:
                self.reject(is_last=is_last)
                return
            names = tuple(values)
            columns = self._columns.setdefault(names, names)
            yield LogRow(step, columns, np.array([*values.values()], np.float64))
            return


def own_pattern(expression: str) -> TextPattern:
    """Compile a user's pattern.

    Raises:
        ConfigurationError: It is no regular expression, or lacks the groups.
    """
    try:
        line = re.compile(expression)
    except re.error as error:
        raise ConfigurationError(
            f"pattern {expression!r} is no regular expression: {error}"
        ) from error
    if "step" not in line.groupindex or len(line.groupindex) < 2:
        raise ConfigurationError(
            f"pattern {expression!r} lacks groups; it needs (?P<step>...) and one for each series"
        )
    return TextPattern(line, _groups)

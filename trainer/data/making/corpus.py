"""The small corpus: documents about handwritten digits whose text follows from their pictures.

Every digit word behind a picture can be known only by looking at it; sums, orders and parities then
follow from the words before. So the loss measures both kinds of learning, seeing and reading.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeAlias

NUMBERS: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)

# What no picture tells: these words are drawn at random, so that the loss has a floor well above 0
# and the difference between two runs is not the difference between two small numbers.
_NAMES: Final = (
    *("anna", "ben", "clara", "david", "emma", "felix", "greta", "hugo", "ida", "jonas"),
    *("karin", "leo", "mara", "nils", "olga", "paul", "rosa", "simon", "tom", "vera"),
)
_COLOURS: Final = ("black", "blue", "brown", "green", "grey", "orange", "purple", "red", "white")
_PLACES: Final = (
    *("berlin", "bern", "lima", "lyon", "madrid", "milan", "modena", "oslo", "paris", "prague"),
    *("rome", "sofia", "tokyo", "turin", "vienna", "warsaw"),
)
_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True, slots=True)
class DigitPicture:
    """The place of a picture of this digit; which one is chosen later."""

    digit: int


Part: TypeAlias = str | DigitPicture


def web_document(random: Random) -> list[Part]:
    """Write one interleaved document: several paragraphs, up to three pictures, or none."""
    return random.choices(_KINDS, weights=_KIND_WEIGHTS)[0](random)


def image_text_pair(random: Random) -> list[Part]:
    """Write one picture and its caption."""
    digit = random.randrange(10)
    caption = random.choice(
        (
            "a handwritten {word} in {colour} ink, found in {place}.",
            "the digit {word} on {colour} paper, written by {name}.",
            "a small picture of a {word}, which is {parity}, from {place}.",
            "{word}, written by {name} in {place}. after it comes {after}.",
        )
    )
    return [DigitPicture(digit), _fill(random, caption, digit)]


def conversation(random: Random, pictures: Sequence[Sequence[bytes]]) -> dict[str, Any]:
    """Write one conversation about one or two pictures, as a line of JSON lines.

    Args:
        random: Draws everything.
        pictures: PNG files by digit.
    """
    digits = [random.randrange(10) for _ in range(random.choice((1, 1, 2)))]
    images = [
        {"base64": base64.b64encode(random.choice(pictures[digit])).decode()} for digit in digits
    ]
    questions = _questions_about_one if len(digits) == 1 else _questions_about_two
    turns: list[dict[str, Any]] = []
    for question, answer in questions(random, digits):
        turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    turns[0]["images"] = images
    return {"turns": turns}


def _questions_about_one(random: Random, digits: list[int]) -> list[tuple[str, str]]:
    (digit,) = digits
    asked = [
        (
            _fill(random, "{name} asks: which digit is this?"),
            f"this is the digit {NUMBERS[digit]}.",
        ),
        ("is it even or odd?", _fill(random, "{word} is {parity}.", digit)),
        ("what comes after it?", _fill(random, "after it comes {after}.", digit)),
    ]
    return asked[: random.choice((1, 2, 3))]


def _questions_about_two(random: Random, digits: list[int]) -> list[tuple[str, str]]:
    first, second = digits
    return [
        (
            _fill(random, "{name} asks: which digits are these?"),
            f"{NUMBERS[first]} and {NUMBERS[second]}.",
        ),
        ("what is their sum?", f"{_sum_in_words(first, second)}."),
    ]


def _fill(random: Random, text: str, digit: int = 0) -> str:
    return text.format(
        word=NUMBERS[digit],
        parity="even" if digit % 2 == 0 else "odd",
        after=NUMBERS[digit + 1],
        name=random.choice(_NAMES),
        colour=random.choice(_COLOURS),
        place=random.choice(_PLACES),
        day=random.choice(_DAYS),
    )


def _describe(random: Random) -> list[Part]:
    parts: list[Part] = [_fill(random, "{name} shows digits from {place}.")]
    for _ in range(2):
        digit = random.randrange(10)
        text = _fill(random, "this {colour} digit is a {word}, and it is {parity}.", digit)
        parts += [DigitPicture(digit), text]
    return parts


def _sum(random: Random) -> list[Part]:
    first, second = random.randrange(10), random.randrange(10)
    return [
        _fill(random, "{name} adds two numbers on {day}. the first:"),
        DigitPicture(first),
        f"it shows {NUMBERS[first]}. the second:",
        DigitPicture(second),
        f"it shows {NUMBERS[second]}. {_sum_in_words(first, second)}.",
    ]


def _sum_in_words(first: int, second: int) -> str:
    return f"{NUMBERS[first]} plus {NUMBERS[second]} is {NUMBERS[first + second]}"


def _order(random: Random) -> list[Part]:
    digits = random.sample(range(10), 3)
    words = ", ".join(NUMBERS[digit] for digit in digits)
    ordered = ", ".join(NUMBERS[digit] for digit in sorted(digits))
    pictures: list[Part] = [DigitPicture(digit) for digit in digits]
    return [
        _fill(random, "{name} put three {colour} pictures in a row:"),
        *pictures,
        f"we read {words}. from small to large: {ordered}.",
    ]


def _compare(random: Random) -> list[Part]:
    first, second = random.sample(range(10), 2)
    relation = "smaller" if first < second else "larger"
    return [
        DigitPicture(first),
        _fill(random, "on {day} {name} wrote a {word} in {place}.", first),
        DigitPicture(second),
        _fill(random, "on {day} {name} wrote a {word}. ", second)
        + f"{NUMBERS[first]} is {relation} than {NUMBERS[second]}.",
    ]


def _count(random: Random) -> list[Part]:
    start = random.randrange(8)
    words = ", ".join(NUMBERS[number] for number in range(start, start + 8))
    return [
        _fill(random, "this page by {name} has no picture.")
        + f" we count from {NUMBERS[start]} upwards: {words}."
    ]


_KINDS: Final[Sequence[Callable[[Random], list[Part]]]] = (
    _describe,
    _sum,
    _order,
    _compare,
    _count,
)
_KIND_WEIGHTS: Final = (3, 3, 2, 3, 1)

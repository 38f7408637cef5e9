"""A window of the stream in which documents are garbage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["random_tokens", "shuffled_text"]


class BadDocuments:
    """Spoils the tokens of the samples at positions [first_sample, first_sample + samples).

    The data is what is bad, so the fault is a function of the position alone: whoever reads the
    position again reads the same garbage, whoever skips it never does.
    """

    def __init__(
        self,
        *,
        first_sample: int,
        samples: int,
        replacements: Sequence[int],
        kind: Kind = "random_tokens",
        seed: int = 0,
    ) -> None:
        """Describe the window.

        Args:
            first_sample: Position of the first bad document.
            samples: Number of bad documents.
            replacements: Token ids that text is made of; all others (special tokens) stay.
            kind: Text replaced by random tokens, or its own tokens in random order.
            seed: Start of the random choices, with the position.

        Raises:
            ValueError: The window is empty or begins before 0, or there is nothing to replace with.
        """
        if first_sample < 0 or samples < 1 or not replacements:
            raise ValueError(
                f"bad documents: first_sample={first_sample}, samples={samples}, "
                f"{len(replacements)} replacements; allowed: a window from 0 on and some tokens"
            )
        self._window = range(first_sample, first_sample + samples)
        self._replacements = list(replacements)
        self._text = frozenset(replacements)
        self._spoil = _SPOILERS[kind]
        self._seed = seed

    def __call__(self, position: int, tokens: list[int]) -> list[int]:
        """Return the tokens of the sample at a position, spoiled if it lies in the window."""
        if position not in self._window:
            return tokens
        random = Random(f"bad_documents/{self._seed}/{position}")  # noqa: S311  no secret
        places = [place for place, token in enumerate(tokens) if token in self._text]
        spoiled = self._spoil(random, [tokens[place] for place in places], self._replacements)
        result = list(tokens)
        for place, token in zip(places, spoiled, strict=True):
            result[place] = token
        return result


def _random_tokens(random: Random, text: list[int], replacements: list[int]) -> list[int]:
    return random.choices(replacements, k=len(text))


def _shuffled(random: Random, text: list[int], replacements: list[int]) -> list[int]:  # noqa: ARG001  one signature
    return random.sample(text, len(text))


_SPOILERS: Final[dict[Kind, Callable[[Random, list[int], list[int]], list[int]]]] = {
    "random_tokens": _random_tokens,
    "shuffled_text": _shuffled,
}

"""Bad documents: functions of the position in the stream.

The data itself is bad: a job that reads the position again reads the same documents, and a job that
skips the position never does.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Annotated, ClassVar, Final, Literal, TypeAlias

from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from stabilizer.errors import ConfigurationError
from trainer.faults.base import SETTINGS

Kind: TypeAlias = Literal["random_tokens", "shuffled_text"]


@dataclass(kw_only=True, config=SETTINGS)
class StreamFault:
    """A window of the stream: samples at [first_sample, first_sample + samples)."""

    name: ClassVar[str] = "stream_fault"

    first_sample: int = Field(
        ge=0,
        description="Position in the stream of its first document (step times global batch).",
    )
    samples: int = Field(ge=1, description="Number of documents in the window.")

    def __contains__(self, position: int) -> bool:
        return self.first_sample <= position < self.first_sample + self.samples

    @property
    def last_sample(self) -> int:
        """Position of the last document of the window."""
        return self.first_sample + self.samples - 1


@dataclass(kw_only=True, config=SETTINGS)
class BadDocuments(StreamFault):
    """Documents of a window of the stream are garbage."""

    name: ClassVar[str] = "bad_documents"

    kind: Kind = "random_tokens"
    """Text replaced by random tokens, or its own tokens in random order."""
    replacements: tuple[int, ...] = ()
    """Token ids that text is made of; all others (special tokens) stay. Empty: those of the
    tokenizer."""
    seed: int | None = None
    """Seed of the random choices, with the position; null: training.seed."""

    def __post_init__(self) -> None:
        """Index the text tokens."""
        self._text = frozenset(self.replacements)

    def __call__(self, position: int, tokens: list[int]) -> list[int]:
        """Return the tokens of the sample at a position; garbage inside the window.

        Raises:
            ConfigurationError: There are no tokens to replace text with.
        """
        if position not in self:
            return tokens
        if not self.replacements:
            raise ConfigurationError(f"faults.{self.name}.replacements: allowed: token ids of text")
        random = Random(f"bad_documents/{self.seed or 0}/{position}")  # noqa: S311  no secret
        places = [place for place, token in enumerate(tokens) if token in self._text]
        text = [tokens[place] for place in places]
        spoiled = _SPOILERS[self.kind](random, text, self.replacements)
        result = list(tokens)
        for place, token in zip(places, spoiled, strict=True):
            result[place] = token
        return result


@dataclass(kw_only=True, config=SETTINGS)
class RepeatedDocuments(StreamFault):
    """In a window of the stream its first documents repeat."""

    name: ClassVar[str] = "repeated_documents"

    distinct: Annotated[int, Field(ge=1)] = 1
    """Number of different documents in the window."""

    @field_validator("distinct")
    @classmethod
    def _fits_the_window(cls, distinct: int, info: ValidationInfo) -> int:
        samples = info.data.get("samples")
        if samples is not None and distinct > samples:
            raise PydanticCustomError(
                "distinct", f"allowed: 1 to faults.{cls.name}.samples ({samples})"
            )
        return distinct

    def __call__(self, position: int) -> int:
        """Return the position whose document is read."""
        if position not in self:
            return position
        return self.first_sample + (position - self.first_sample) % self.distinct


def _random_tokens(random: Random, text: list[int], replacements: tuple[int, ...]) -> list[int]:
    return random.choices(replacements, k=len(text))


def _shuffled(random: Random, text: list[int], replacements: tuple[int, ...]) -> list[int]:  # noqa: ARG001  one signature
    return random.sample(text, len(text))


_SPOILERS: Final[dict[Kind, Callable[[Random, list[int], tuple[int, ...]], list[int]]]] = {
    "random_tokens": _random_tokens,
    "shuffled_text": _shuffled,
}

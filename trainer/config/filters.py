"""Which documents and pictures are left out, as the makers of OBELICS did; nothing by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from trainer.config.checks import require, require_between, require_count

_NAME = "data.filters"


@dataclass(frozen=True, kw_only=True, slots=True)
class FiltersConfig:
    """Limits on documents; null: no limit.

    Pictures are looked at first: one outside of its limits is taken out of its document, whose
    paragraphs stay. Then the document is judged as a whole.

    Source: Laurencon et al., OBELICS (arXiv:2306.16527), appendix A.2 and A.3: the kinds of
    filters, not their numbers, which belong to a corpus.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    min_words: int | None = None
    """Fewest words in all paragraphs together; words are what blanks separate."""
    max_words: int | None = None
    """Most words in all paragraphs together."""
    max_word_repetition: float | None = None
    """Largest part of the word n-grams that occur more than once, 0 to 1."""
    word_ngram: int = 5
    """Words in an n-gram."""
    max_char_repetition: float | None = None
    """Largest part of the character n-grams that occur more than once, 0 to 1."""
    char_ngram: int = 10
    """Characters in an n-gram."""
    min_pictures: int | None = None
    """Fewest pictures, after those outside of the limits below were taken out."""
    max_pictures: int | None = None
    """Most pictures."""
    min_picture_side: int | None = None
    """Smallest width and height of a picture in pixels."""
    max_picture_side: int | None = None
    """Largest width and height of a picture in pixels."""
    max_aspect_ratio: float | None = None
    """Largest ratio of a picture's longer side to its shorter one."""
    flagged_words: str | None = None
    """File with a word per line (# begins a remark); case does not matter."""
    max_flagged_ratio: float = 0.0
    """Largest part of the words that stand in `flagged_words`."""

    def __post_init__(self) -> None:
        for name in ("min_words", "max_words", "min_pictures", "max_pictures"):
            self._require_count(name, at_least=0)
        for name in ("min_picture_side", "max_picture_side", "word_ngram", "char_ngram"):
            self._require_count(name, at_least=1)
        for name in ("max_word_repetition", "max_char_repetition", "max_flagged_ratio"):
            value = getattr(self, name)
            if value is not None:
                require_between(f"{_NAME}.{name}", value, 0.0, 1.0)
        if self.max_aspect_ratio is not None:
            require_between(f"{_NAME}.max_aspect_ratio", self.max_aspect_ratio, 1.0, 1e6)
        for kind in ("words", "pictures", "picture_side"):
            self._require_order(f"min_{kind}", f"max_{kind}")

    def _require_count(self, name: str, *, at_least: int) -> None:
        value = getattr(self, name)
        if value is not None:
            require_count(f"{_NAME}.{name}", value, at_least=at_least)

    def _require_order(self, low_name: str, high_name: str) -> None:
        low, high = getattr(self, low_name), getattr(self, high_name)
        if low is not None and high is not None:
            require(
                low <= high, f"{_NAME}.{low_name}", low, f"at most {_NAME}.{high_name} ({high})"
            )

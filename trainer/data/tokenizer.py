"""The tokenizer that is trained on the corpus, and the special tokens of IDEFICS."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stabilizer.errors import ConfigurationError

TOKENIZER_FILE: Final = "tokenizer.json"
BOS: Final = "<s>"
EOS: Final = "</s>"
PAD: Final = "<pad>"
IMAGE: Final = "<image>"
AROUND_IMAGE: Final = "<fake_token_around_image>"
SPECIAL_TOKENS: Final = (PAD, BOS, EOS, AROUND_IMAGE, IMAGE)
END_OF_UTTERANCE: Final = "<end_of_utterance>"  # only where conversations are learned
_UNKNOWN: Final = "<unk>"  # pads in the published tokenizer of IDEFICS, which has no other


def train_tokenizer(
    texts: Iterable[str], vocabulary_size: int, *, for_conversations: bool = False
) -> Tokenizer:
    """Learn a byte-level BPE: any text can be written in it, whatever it was trained on.

    The special tokens get the first ids, in the order of `SPECIAL_TOKENS`.

    Args:
        texts: Training data.
        vocabulary_size: At most so many tokens; at least 256 bytes and the special tokens.
        for_conversations: Whether there is a token for the end of a turn, after the others.

    Raises:
        ConfigurationError: The vocabulary is too small to hold every byte.
    """
    special_tokens = [*SPECIAL_TOKENS, *([END_OF_UTTERANCE] if for_conversations else [])]
    least = 256 + len(special_tokens)
    if vocabulary_size < least:
        raise ConfigurationError(
            f"vocabulary_size: {vocabulary_size} cannot be used; allowed: at least {least}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class CorpusTokenizer:
    """A tokenizer with the special tokens of IDEFICS: text to ids and back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a tokenizer; where it has no `<pad>`, `<unk>` pads.

        Raises:
            ConfigurationError: It lacks a special token.
        """
        known = (*SPECIAL_TOKENS, END_OF_UTTERANCE)
        ids = {token: tokenizer.token_to_id(token) for token in known}
        if ids[PAD] is None:
            ids[PAD] = tokenizer.token_to_id(_UNKNOWN)
        self._special = {token: number for token, number in ids.items() if number is not None}
        missing = [token for token in SPECIAL_TOKENS if token not in self._special]
        if missing:
            raise ConfigurationError(f"the tokenizer lacks the tokens {', '.join(missing)}")
        tokenizer.encode_special_tokens = True  # "<image>" in a text is text, not a picture
        self._tokenizer = tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, special ones included."""
        return self._tokenizer.get_vocab_size()

    @property
    def text_ids(self) -> list[int]:
        """Ids of all tokens that text is made of."""
        special = set(self._special.values())
        return [number for number in range(self.vocabulary_size) if number not in special]

    def special(self, token: str) -> int:
        """Return the id of one of `SPECIAL_TOKENS`."""
        return self._special[token]

    def special_or(self, token: str, other: str) -> int:
        """Return the id of a special token, or of another one where there is none."""
        return self._special.get(token, self._special[other])

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; it holds no special token whatever is written in it."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text, special tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


def load_tokenizer(path: Path) -> CorpusTokenizer:
    """Read the tokenizer of a corpus.

    Args:
        path: The folder that holds it, or the file.

    Raises:
        ConfigurationError: It is absent, cannot be read, or lacks a special token.
    """
    path = path if path.is_file() else path / TOKENIZER_FILE
    if not path.is_file():
        raise ConfigurationError(
            f"data.folder: {path} does not exist; allowed: a folder written by "
            "`python -m trainer data make --out FOLDER`, or data.tokenizer"
        )
    try:
        return CorpusTokenizer(Tokenizer.from_file(str(path)))
    except ConfigurationError as error:
        raise ConfigurationError(f"data.folder: {path}: {error}") from error
    except Exception as error:  # the library raises bare Exception on a bad file
        raise ConfigurationError(f"data.folder: {path} is not a tokenizer file: {error}") from error

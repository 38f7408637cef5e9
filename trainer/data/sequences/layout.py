"""From a document to tokens, as IDEFICS writes them.

Every picture is `<fake_token_around_image><image><fake_token_around_image>` in the text; pictures
in a row share the token between them. A document begins with `<s>` and ends with `</s>`. A turn of
a conversation ends with `<end_of_utterance>`, or `</s>` where the tokenizer has no such token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from trainer.data.documents import BadDocumentError, Document, Part, Reason
from trainer.data.tokenizer import (
    AROUND_IMAGE,
    BOS,
    END_OF_UTTERANCE,
    EOS,
    IMAGE,
    CorpusTokenizer,
)


@dataclass(slots=True)
class Piece:
    """What of one document stands in one sequence."""

    sample_id: str
    """Which document."""
    source: str
    """Where it is from."""
    tokens: list[int] = field(default_factory=list)
    """Ids; special ones for pictures among them."""
    learned: list[bool] = field(default_factory=list)
    """For each token, whether it is predicted."""
    pictures: list[bytes] = field(default_factory=list)
    """Files, one for every `<image>` in the tokens."""

    def teaches(self) -> bool:
        """Whether any token behind the first one is predicted."""
        return any(self.learned[1:])


class DocumentLayout:
    """Writes documents as tokens."""

    def __init__(
        self, tokenizer: CorpusTokenizer, *, sequence_length: int, max_images: int
    ) -> None:
        """Take the sizes of a sequence: tokens, and pictures."""
        self._tokenizer = tokenizer
        self._length = sequence_length
        self._max_images = max_images
        self._bos, self._eos = tokenizer.special(BOS), tokenizer.special(EOS)
        self._around, self._image = tokenizer.special(AROUND_IMAGE), tokenizer.special(IMAGE)
        self._end_of_turn = tokenizer.special_or(END_OF_UTTERANCE, EOS)

    def cut(self, document: Document) -> Piece:
        """Return the beginning of a document: at most S tokens and I pictures.

        Raises:
            BadDocumentError: Nothing in it is predicted.
        """
        piece = self._begin(document)
        for part, is_learned in _parts(document):
            if isinstance(part, bytes) and len(piece.pictures) == self._max_images:
                break
            self._append(piece, part, is_learned)
        else:
            self._end(piece, document)
        length = self._length
        piece.tokens, piece.learned = piece.tokens[:length], piece.learned[:length]
        piece.pictures = piece.pictures[: piece.tokens.count(self._image)]
        return _teaching([piece], document)[0]

    def split(self, document: Document) -> list[Piece]:
        """Return a whole document in as many pieces as it needs, a new one where one is full.

        A picture is never cut from its tokens. What begins in the middle has no `<s>`.

        Raises:
            BadDocumentError: Nothing in it is predicted.
        """
        pieces = [self._begin(document)]
        for part, is_learned in _parts(document):
            if isinstance(part, bytes):
                needs_another = len(pieces[-1].pictures) == self._max_images
                if needs_another or len(pieces[-1].tokens) + 3 > self._length:
                    pieces.append(Piece(document.sample_id, document.source))
                self._append(pieces[-1], part, is_learned)
                continue
            self._spread(pieces, self._tokens(part), is_learned)
        if len(pieces[-1].tokens) < self._length:  # alone in a piece it would teach nothing
            self._end(pieces[-1], document)
        return _teaching(pieces, document)

    def _begin(self, document: Document) -> Piece:
        learned = document.learned is None
        return Piece(document.sample_id, document.source, [self._bos], [learned])

    def _end(self, piece: Piece, document: Document) -> None:
        piece.tokens.append(self._eos)
        piece.learned.append(document.learned is None)

    def _append(self, piece: Piece, part: Part, is_learned: bool) -> None:
        tokens = self._tokens(part)
        if isinstance(part, bytes):
            piece.pictures.append(part)
            if piece.tokens and piece.tokens[-1] == self._around:
                tokens = tokens[1:]
        piece.tokens += tokens
        piece.learned += [is_learned] * len(tokens)

    def _tokens(self, part: Part) -> list[int]:
        if isinstance(part, bytes):
            return [self._around, self._image, self._around]
        return self._tokenizer.encode(part) if isinstance(part, str) else [self._end_of_turn]

    def _spread(self, pieces: list[Piece], tokens: list[int], is_learned: bool) -> None:
        while tokens:
            room = self._length - len(pieces[-1].tokens)
            if not room:
                pieces.append(Piece(pieces[-1].sample_id, pieces[-1].source))
                continue
            here, tokens = tokens[:room], tokens[room:]
            pieces[-1].tokens += here
            pieces[-1].learned += [is_learned] * len(here)


def _parts(document: Document) -> Iterator[tuple[Part, bool]]:
    learned = document.learned or (True,) * len(document.parts)
    return zip(document.parts, learned, strict=True)


def _teaching(pieces: list[Piece], document: Document) -> list[Piece]:
    found = [piece for piece in pieces if piece.teaches()]
    if not found:
        raise BadDocumentError(
            document.sample_id, "no token of it would be learned", Reason.NOTHING_TO_LEARN
        )
    return found

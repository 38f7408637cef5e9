"""From pieces of documents to the tensors of one sequence, as IDEFICS lays them out.

A text token sees the last picture before it in its document, as in Flamingo and in
`transformers.models.idefics.processing_idefics`, or all of them; tokens before the first picture
and padding see none, and no token sees a picture of another document. Text does see the text of
the documents before it in its sequence, as in IDEFICS.

Shape letters: S sequence_length, I max_images, C colours, H, W image_size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor

from trainer.data.documents import Document
from trainer.data.sequences.layout import DocumentLayout, Piece
from trainer.data.sequences.pictures import decode_picture
from trainer.data.tokenizer import BOS, IMAGE, PAD, CorpusTokenizer

IGNORED_LABEL: Final = -100  # torch.nn.functional.cross_entropy's ignore_index

TokenFault: TypeAlias = Callable[[int, list[int]], list[int]]
"""(position, token ids) -> token ids of the same length; the identity outside of its window."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence, ready for a batch."""

    position: int
    """Where it stands in the stream."""
    sample_ids: tuple[str, ...]
    """Which documents are in it."""
    sources: tuple[str, ...]
    """Where each document is from."""
    input_ids: Tensor
    """[S] int64, padded at the end."""
    attention_mask: Tensor
    """[S] int64; 0 at padding."""
    labels: Tensor
    """[S] int64; IGNORED_LABEL where nothing is predicted. Not shifted."""
    pixel_values: Tensor
    """[I, C, H, W] float32; zeros where there are fewer pictures."""
    image_attention_mask: Tensor
    """[S, I] int64; 1 where the token sees the picture."""
    document_ids: Tensor
    """[S] int64; which of the documents a token is of, -1 at padding."""


class SequenceEncoder:
    """Tokens, pictures and masks of sequences of one fixed size."""

    def __init__(
        self,
        tokenizer: CorpusTokenizer,
        *,
        sequence_length: int,
        max_images: int,
        image_size: int,
        sees_all_images: bool = False,
    ) -> None:
        """Take the sizes.

        Args:
            tokenizer: Knows the special tokens.
            sequence_length: S.
            max_images: I.
            image_size: Side of a picture in pixels.
            sees_all_images: Whether a token sees all pictures before it, not only the last one.
        """
        self.layout = DocumentLayout(
            tokenizer, sequence_length=sequence_length, max_images=max_images
        )
        self._length = sequence_length
        self._max_images = max_images
        self._image_size = image_size
        self._sees_all = sees_all_images
        self._pad, self._bos = tokenizer.special(PAD), tokenizer.special(BOS)
        self._image = tokenizer.special(IMAGE)

    def encode(self, document: Document, position: int, fault: TokenFault | None = None) -> Sample:
        """Lay out the beginning of one document.

        Args:
            document: What to lay out.
            position: Where it stands in the stream.
            fault: Changes the tokens before masks and labels are made from them.

        Raises:
            BadDocumentError: A picture cannot be decoded, or nothing is learned.
        """
        piece = self.layout.cut(document)
        return self.join([piece], [self.decode(piece)], position, fault)

    def decode(self, piece: Piece) -> list[Tensor]:
        """Return the pictures of a piece, each [C, H, W] float32.

        Raises:
            BadDocumentError: One cannot be decoded.
        """
        size = self._image_size
        return [decode_picture(piece.sample_id, file, size) for file in piece.pictures]

    def join(
        self,
        pieces: Sequence[Piece],
        pictures: Sequence[Sequence[Tensor]],
        position: int,
        fault: TokenFault | None = None,
    ) -> Sample:
        """Lay out pieces one behind the other; together they fit.

        Args:
            pieces: In order, at least one.
            pictures: Those of every piece, decoded.
            position: Where the sequence stands in the stream.
            fault: Changes the tokens before masks and labels are made from them.
        """
        tokens = [token for piece in pieces for token in piece.tokens]
        if fault is not None:
            tokens = fault(position, tokens)
        length = len(tokens)
        input_ids = torch.full((self._length,), self._pad, dtype=torch.int64)
        input_ids[:length] = torch.tensor(tokens, dtype=torch.int64)
        document_ids = torch.full((self._length,), -1, dtype=torch.int64)
        places = [place for place, piece in enumerate(pieces) for _ in piece.tokens]
        document_ids[:length] = torch.tensor(places, dtype=torch.int64)
        pixels = torch.zeros(self._max_images, 3, self._image_size, self._image_size)
        for place, picture in enumerate(each for group in pictures for each in group):
            pixels[place] = picture
        return Sample(
            position=position,
            sample_ids=tuple(piece.sample_id for piece in pieces),
            sources=tuple(piece.source for piece in pieces),
            input_ids=input_ids,
            attention_mask=document_ids.ge(0).to(torch.int64),
            labels=self._labels(input_ids, pieces),
            pixel_values=pixels,
            image_attention_mask=self._image_mask(input_ids, document_ids),
            document_ids=document_ids,
        )

    def _labels(self, input_ids: Tensor, pieces: Sequence[Piece]) -> Tensor:
        """Predict what is learned, but no picture, and no beginning from another document's end."""
        learned = torch.zeros(self._length, dtype=torch.bool)
        flags = [flag for piece in pieces for flag in piece.learned]
        learned[: len(flags)] = torch.tensor(flags, dtype=torch.bool)
        learned &= input_ids.ne(self._image)
        start = 0
        for piece in pieces[:-1]:
            start += len(piece.tokens)
            learned[start] = False
        return input_ids.masked_fill(~learned, IGNORED_LABEL)

    def _image_mask(self, input_ids: Tensor, document_ids: Tensor) -> Tensor:
        is_image = input_ids.eq(self._image)
        images = torch.arange(self._max_images)
        newest = is_image.cumsum(0)[:, None] - 1  # number of the last picture, -1: none
        seen = images <= newest if self._sees_all else images == newest
        owners = torch.full((self._max_images,), -2, dtype=torch.int64)  # of nobody
        shown = document_ids[is_image][: self._max_images]
        owners[: len(shown)] = shown
        return (seen & document_ids[:, None].eq(owners)).to(torch.int64)

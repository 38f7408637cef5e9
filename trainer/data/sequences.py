"""A document as a sequence of tokens and pictures."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from trainer.data.documents import BadDocumentError, Document, Part, Reason
from trainer.data.tokenizer import (
    AROUND_IMAGE,
    BOS,
    END_OF_UTTERANCE,
    EOS,
    IMAGE,
    PAD,
    CorpusTokenizer,
)

MAX_PIXELS: Final = 64 * 1024 * 1024  # a picture above that is an attack or a mistake
# Decoders that read nothing but pixels; PIL also has some that start programs or follow paths.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# Mean and deviation per colour of CLIP, with which IDEFICS' vision encoder was trained.
_MEAN: Final = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
_DEVIATION: Final = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
# PIL raises these on damaged files (its fuzz tests list them), and its warnings where warnings are
# errors.
_DECODER_ERRORS: Final = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(RuntimeError, EOFError, MemoryError, AssertionError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Warning),
)


def decode_picture(sample_id: str, file: bytes, size: int) -> Tensor:
    """Decode a picture.

    The first frame counts; the turn in its EXIF data is carried out; what is transparent becomes
    white.

    Args:
        sample_id: Of the document, for errors.
        file: PNG, JPEG, WebP, GIF, BMP, TIFF or PPM.
        size: Side of the result in pixels.

    Returns:
        [C, H, W] float32, normalised as CLIP does.

    Raises:
        BadDocumentError: It cannot be decoded, or is larger than `MAX_PIXELS`.
    """
    picture = open_upright(sample_id, file, draft=2 * size)
    resized = picture.resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(resized, dtype=np.float32)).permute(2, 0, 1) / 255
    return (pixels - _MEAN) / _DEVIATION


def open_upright(sample_id: str, file: bytes, *, draft: int | None = None) -> Image.Image:
    """Decode a picture to RGB: its first frame, turned as its EXIF data says, on white.

    Args:
        sample_id: Of the document, for errors.
        file: As for `decode_picture`.
        draft: A large JPEG is decoded at a fraction of its size, still at least so many pixels.

    Raises:
        BadDocumentError: It cannot be decoded, or is larger than `MAX_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(sample_id, image.width, image.height)
            if draft is not None and image.format == "JPEG":
                image.draft(None, (draft, draft))
            return _as_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadDocumentError(sample_id, str(error), Reason.PICTURE_TOO_LARGE) from error
    except UnidentifiedImageError as error:  # PIL's message holds the address of an object
        raise BadDocumentError(
            sample_id,
            f"a picture cannot be decoded: it is none of {', '.join(FORMATS)}",
            Reason.PICTURE_UNDECODABLE,
        ) from error
    except _DECODER_ERRORS as error:
        raise BadDocumentError(
            sample_id, f"a picture cannot be decoded: {error}", Reason.PICTURE_UNDECODABLE
        ) from error


def picture_size(file: bytes) -> tuple[int, int] | None:
    """Return width and height from the header of a picture; None without a valid header."""
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            return image.size
    except _DECODER_ERRORS:
        return None


def _too_large(sample_id: str, width: int, height: int) -> BadDocumentError:
    return BadDocumentError(sample_id, f"a picture of {width}x{height}", Reason.PICTURE_TOO_LARGE)


def _as_rgb(image: Image.Image) -> Image.Image:
    image.load()  # decodes everything: a truncated file fails here
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # PIL would cut such grey levels off at 255
        levels = np.asarray(upright).astype(np.uint16) >> 8
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        opaque = Image.new("RGBA", upright.size, "white")
        opaque.alpha_composite(upright.convert("RGBA"))
        return opaque.convert("RGB")
    return upright.convert("RGB")


@dataclass(slots=True)
class Piece:
    """The part of one document in one sequence."""

    sample_id: str
    """Id of the document."""
    source: str
    """Name of its source."""
    tokens: list[int] = field(default_factory=list)
    """Token ids, with special tokens for pictures."""
    learned: list[bool] = field(default_factory=list)
    """For each token, whether it is predicted."""
    pictures: list[bytes] = field(default_factory=list)
    """Image files, one for every `<image>` token."""

    def teaches(self) -> bool:
        """Whether any token after the first one is predicted."""
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
        if len(pieces[-1].tokens) < self._length:  # a token alone in a piece predicts nothing
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
            document.sample_id, "no token of it would be predicted", Reason.NOTHING_TO_LEARN
        )
    return found


IGNORED_LABEL: Final = -100  # torch.nn.functional.cross_entropy's ignore_index

TokenFault: TypeAlias = Callable[[int, list[int]], list[int]]
"""(position, token ids) -> token ids of the same length; the identity outside of its window."""


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One sequence, ready for a batch."""

    position: int
    """Position in the stream."""
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
    """[S] int64; index of the document that a token belongs to; -1 at padding."""


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

    def encode(
        self, document: Document, position: int, fault: TokenFault | None = None
    ) -> EncodedSample:
        """Lay out the beginning of one document.

        Args:
            document: What to lay out.
            position: Position in the stream.
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
    ) -> EncodedSample:
        """Lay out pieces one after the other; together they fit.

        Args:
            pieces: In order, at least one.
            pictures: Those of every piece, decoded.
            position: Position of the sequence in the stream.
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
        return EncodedSample(
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
        """Label what is learned, except pictures and the first token of each document."""
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
        newest = is_image.cumsum(0)[:, None] - 1  # index of the last picture; -1: none
        seen = images <= newest if self._sees_all else images == newest
        owners = torch.full((self._max_images,), -2, dtype=torch.int64)  # no owner
        shown = document_ids[is_image][: self._max_images]
        owners[: len(shown)] = shown
        return (seen & document_ids[:, None].eq(owners)).to(torch.int64)

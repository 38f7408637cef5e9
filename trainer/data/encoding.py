"""From a document to the tensors of one sample, as IDEFICS lays them out.

Every picture is `<fake_token_around_image><image><fake_token_around_image>` in the text; pictures
in a row share the token between them. A text token sees the last picture before it, as in Flamingo
and in `transformers.models.idefics.processing_idefics`; tokens before the first picture and padding
see none.

Shape letters: S sequence_length, I max_images, C colours, H, W image_size.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.data.parquet import BadDocumentError, Document
from trainer.data.tokenizer import AROUND_IMAGE, BOS, EOS, IMAGE, PAD, CorpusTokenizer

IGNORED_LABEL: Final = -100  # torch.nn.functional.cross_entropy's ignore_index
_MAX_PIXELS: Final = 64 * 1024 * 1024  # a picture above that is an attack or a mistake
# Mean and deviation per colour of CLIP, with which IDEFICS' vision encoder was trained.
_MEAN: Final = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
_DEVIATION: Final = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)

TokenFault: TypeAlias = Callable[[int, list[int]], list[int]]
"""(position, token ids) -> token ids of the same length; the identity outside of its window."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One document, ready for a batch."""

    position: int
    """Where it stands in the stream."""
    sample_id: str
    """Which document it is."""
    source: str
    """Where the document is from."""
    input_ids: Tensor
    """[S] int64, padded at the end."""
    attention_mask: Tensor
    """[S] int64; 0 at padding."""
    labels: Tensor
    """[S] int64; IGNORED_LABEL at padding and image tokens. Not shifted."""
    pixel_values: Tensor
    """[I, C, H, W] float32; zeros where the document has fewer pictures."""
    image_attention_mask: Tensor
    """[S, I] int64; 1 where the token sees the picture."""


class DocumentEncoder:
    """Tokens, pictures and masks of documents at one fixed size."""

    def __init__(
        self, tokenizer: CorpusTokenizer, *, sequence_length: int, max_images: int, image_size: int
    ) -> None:
        self._tokenizer = tokenizer
        self._length = sequence_length
        self._max_images = max_images
        self._image_size = image_size
        self._id = {
            token: tokenizer.special(token) for token in (PAD, BOS, EOS, AROUND_IMAGE, IMAGE)
        }

    def encode(self, document: Document, position: int, fault: TokenFault | None = None) -> Sample:
        """Lay out one document.

        Args:
            document: What to lay out.
            position: Where it stands in the stream.
            fault: Changes the tokens before masks and labels are made from them.

        Raises:
            BadDocumentError: A picture cannot be decoded.
        """
        tokens, files = self._tokens(document)
        if fault is not None:
            tokens = fault(position, tokens)
        length = len(tokens)
        input_ids = torch.full((self._length,), self._id[PAD], dtype=torch.int64)
        input_ids[:length] = torch.tensor(tokens, dtype=torch.int64)
        attention_mask = torch.zeros(self._length, dtype=torch.int64)
        attention_mask[:length] = 1
        unpredicted = attention_mask.eq(0) | input_ids.eq(self._id[IMAGE])
        labels = input_ids.masked_fill(unpredicted, IGNORED_LABEL)
        return Sample(
            position=position,
            sample_id=document.sample_id,
            source=document.source,
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            pixel_values=self._pixels(document.sample_id, files),
            image_attention_mask=self._image_mask(input_ids, attention_mask),
        )

    def _tokens(self, document: Document) -> tuple[list[int], list[bytes]]:
        """Return at most S tokens, and the files of the pictures that they name."""
        tokens = [self._id[BOS]]
        files: list[bytes] = []
        for part in document.parts:
            if isinstance(part, str):
                tokens += self._tokenizer.encode(part)
                continue
            if len(files) == self._max_images:
                break
            if tokens[-1] != self._id[AROUND_IMAGE]:
                tokens.append(self._id[AROUND_IMAGE])
            tokens += [self._id[IMAGE], self._id[AROUND_IMAGE]]
            files.append(part)
        else:
            tokens.append(self._id[EOS])
        tokens = tokens[: self._length]
        return tokens, files[: tokens.count(self._id[IMAGE])]

    def _pixels(self, sample_id: str, files: list[bytes]) -> Tensor:
        size = self._image_size
        pixels = torch.zeros(self._max_images, 3, size, size)
        for place, file in enumerate(files):
            pixels[place] = _decode(sample_id, file, size)
        return pixels

    def _image_mask(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = input_ids.eq(self._id[IMAGE]).cumsum(0) - 1  # number of the last picture, -1: none
        mask = seen[:, None].eq(torch.arange(self._max_images))
        return (mask & attention_mask.eq(1)[:, None]).to(torch.int64)


def _decode(sample_id: str, file: bytes, size: int) -> Tensor:
    """Return [C, H, W] float32, normalised."""
    try:
        with Image.open(io.BytesIO(file)) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise BadDocumentError(f"{sample_id}: a picture of {image.width}x{image.height}")
            resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadDocumentError(f"{sample_id}: a picture cannot be decoded: {error}") from error
    pixels = torch.from_numpy(np.asarray(resized, dtype=np.float32)).permute(2, 0, 1) / 255
    return (pixels - _MEAN) / _DEVIATION

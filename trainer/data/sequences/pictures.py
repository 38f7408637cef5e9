"""From the file of a picture to numbers, safely: these files come from anywhere.

Shape letters: C colours, H, W image_size.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from trainer.data.documents import BadDocumentError, Reason

MAX_PIXELS: Final = 64 * 1024 * 1024  # a picture above that is an attack or a mistake
# Decoders that read nothing but pixels; PIL also has some that start programs or follow paths.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# Mean and deviation per colour of CLIP, with which IDEFICS' vision encoder was trained.
_MEAN: Final = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
_DEVIATION: Final = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
# What PIL raises on damaged files, by its tests of fuzzed ones; and its warnings, where warnings
# are errors.
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
    except UnidentifiedImageError as error:  # PIL names an object in memory
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
    """Return width and height by a picture's header alone; None where there is none."""
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            return image.size
    except _DECODER_ERRORS:
        return None


def _too_large(sample_id: str, width: int, height: int) -> BadDocumentError:
    return BadDocumentError(sample_id, f"a picture of {width}x{height}", Reason.PICTURE_TOO_LARGE)


def _as_rgb(image: Image.Image) -> Image.Image:
    image.load()  # all of it: a truncated file says so here
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # PIL would cut such grey levels off at 255
        levels = np.asarray(upright).astype(np.uint16) >> 8
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        opaque = Image.new("RGBA", upright.size, "white")
        opaque.alpha_composite(upright.convert("RGBA"))
        return opaque.convert("RGB")
    return upright.convert("RGB")

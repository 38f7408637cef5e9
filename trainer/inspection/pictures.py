"""Small copies of pictures, safe to show."""

from __future__ import annotations

import io

from PIL import Image

from trainer.data.sequences.pictures import open_upright

_SIDE = 320  # pixels; enough to judge, and a page of hundreds stays light


def thumbnail(sample_id: str, file: bytes) -> bytes:
    """Return a PNG of at most 320 pixels a side.

    Raises:
        BadDocumentError: The picture cannot be decoded.
    """
    image = open_upright(sample_id, file)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()

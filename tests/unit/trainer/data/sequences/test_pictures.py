import io

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data.documents import BadDocumentError, Reason
from trainer.data.sequences import decode_picture, picture_size

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def file_of(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def levels(file, size=8):
    """Decode, and undo the normalisation: 0 to 255 per colour."""
    return ((decode_picture("web:0", file, size) * DEVIATION + MEAN) * 255).round()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats_of_the_web_are_read(kind):
    found = levels(file_of(Image.new("RGB", (9, 5), (255, 255, 255)), kind))
    assert found.shape == (3, 8, 8)
    assert (found > 250).all()


@pytest.mark.parametrize("kind", ["EPS", "PDF"])
def test_formats_that_are_programs_are_not(kind):
    with pytest.raises(BadDocumentError) as caught:
        decode_picture("web:0", file_of(Image.new("RGB", (9, 5)), kind), 8)
    assert caught.value.reason is Reason.PICTURE_UNDECODABLE


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 50, 255), (200, 100, 50)),
        ("RGBA", (200, 100, 50, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
    ],
)
def test_grey_and_transparency_become_colours_on_white(mode, colour, expected):
    found = levels(file_of(Image.new(mode, (8, 8), colour)))
    assert found.amax(dim=(1, 2)).tolist() == found.amin(dim=(1, 2)).tolist() == list(expected)


def test_a_palette_with_a_transparent_colour_becomes_white_there():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert levels(file_of(image))[:, 0, 0].tolist() == [10, 20, 30]
    assert levels(file_of(image, transparency=0))[:, 0, 0].tolist() == [255, 255, 255]


def test_cmyk_becomes_colours():
    red = levels(file_of(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG"))
    assert red[0].min() > 200
    assert red[1:].max() < 60


def test_sixteen_bits_of_grey_are_scaled_not_cut_off():
    grey = np.full((8, 8), 0x8000, dtype=np.uint16)
    assert set(levels(file_of(Image.fromarray(grey))).flatten().tolist()) == {128.0}


def test_the_turn_in_exif_data_is_carried_out():
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (0, 0, 8, 4))  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    found = levels(file_of(image, exif=exif))[0]
    assert found[:, 6:].min() > 200
    assert found[:, :2].max() < 50


def test_the_first_frame_of_a_moving_picture_counts():
    frames = [Image.new("L", (8, 8), level) for level in (50, 250)]
    found = levels(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert found.unique().tolist() == [50.0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_a_bad_document(kind, part):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    file = file_of(Image.fromarray(noise), kind)
    with pytest.raises(BadDocumentError) as caught:
        decode_picture("web:7", file[: int(len(file) * part)], 8)
    assert caught.value.reason is Reason.PICTURE_UNDECODABLE
    assert caught.value.sample_id == "web:7"


def test_damaged_files_never_raise_anything_else():
    random = np.random.default_rng(0)
    noise = random.integers(0, 255, (24, 24, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        file = np.frombuffer(file_of(Image.fromarray(noise), kind), dtype=np.uint8)
        for _ in range(60):
            spoiled = file.copy()
            spoiled[random.integers(0, len(file), 4)] = random.integers(0, 255, 4)
            try:
                assert decode_picture("web:0", spoiled.tobytes(), 8).shape == (3, 8, 8)
            except BadDocumentError:
                continue


@pytest.mark.parametrize("size", [(20_000, 20_000), (9_000, 9_000)], ids=["bomb", "too large"])
def test_a_picture_of_absurd_size_is_not_decoded(size):
    with pytest.raises(BadDocumentError) as caught:
        decode_picture("web:0", file_of(Image.new("1", size)), 8)
    assert caught.value.reason is Reason.PICTURE_TOO_LARGE


def test_a_large_jpeg_looks_like_a_small_one():
    image = Image.linear_gradient("L").resize((2000, 2000))
    small = levels(file_of(image.resize((16, 16)), "JPEG", quality=95))
    assert (levels(file_of(image, "JPEG")) - small).abs().max() < 12


def test_the_size_is_read_without_decoding():
    assert picture_size(file_of(Image.new("L", (31, 5)))[:60]) == (31, 5)
    assert picture_size(b"nothing") is None

"""Picture files as pixels: against Pillow's own, and what is said of those that cannot be used."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from condensation.pictures import Look, decode, look

PIXELS = 4 * np.arange(60, dtype=np.uint8).reshape(4, 5, 3)


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the content of a picture file."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a piece of a PNG file."""
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def exif(orientation: int) -> Image.Exif:
    """Return Exif that says how the camera was held."""
    said = Image.Exif()
    said[ExifTags.Base.Orientation] = orientation
    return said


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    """TIFF files Pillow turns itself; an orientation that Exif does not know is none."""
    content = file(Image.fromarray(PIXELS), kind, exif=exif(orientation))
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    found = look(content)
    assert found == Look(False, upright.shape[:2])
    assert np.array_equal(decode(content, 3, found.size).permute(1, 2, 0).numpy(), upright)


@pytest.mark.parametrize(
    "name, said, size",
    [(b"eXIf", exif(6).tobytes()[6:], (5, 4)), (b"eXIf", b"junk", (4, 5)), (b"teXt", b"", (4, 5))],
)
def test_exif_behind_the_pixels_of_a_png_file(name: bytes, said: bytes, size: object) -> None:
    """Found without the pixels; damaged, it turns nothing."""
    whole = file(Image.fromarray(PIXELS))
    content = whole[:-12] + chunk(name, said) + whole[-12:]
    found = look(content)
    assert found.size == size and tuple(decode(content, 3, found.size).shape[1:]) == size


PALETTE = Image.fromarray(np.array([[0, 1]], np.uint8))
PALETTE.putpalette([255, 0, 0, 0, 0, 255] * 128)
LAYERED = {
    "grey": (file(Image.fromarray(np.array([[[0, 0], [9, 255]]], np.uint8))), [255, 9]),
    "grey with one value": (file(Image.new("L", (2, 1), 3), transparency=3), [255, 255]),
    "colour": (file(Image.new("RGBA", (2, 1), (0, 0, 255, 51))), [[204, 204, 255]] * 2),
    "palette": (file(PALETTE, transparency=bytes([0, 255])), [[255, 255, 255], [0, 0, 255]]),
    "palette with one value": (
        file(PALETTE, "GIF", transparency=1),
        [[255, 0, 0], [255, 255, 255]],
    ),
}
"""A file of two pixels, and what they are on white."""


@pytest.mark.parametrize("case", LAYERED)
def test_what_is_transparent_is_on_white(case: str) -> None:
    content, expected = LAYERED[case]
    found = look(content)
    assert found == Look(case.startswith("grey"), (1, 2))
    pixels = decode(content, 1 if found.grey else 3, found.size)
    assert pixels.dtype == torch.uint8 and pixels[:, 0].T.squeeze(1).tolist() == expected


@pytest.mark.parametrize(
    "colour, kind", [(0, "I;16"), (2, "RGB;16B"), (4, "LA;16B"), (6, "RGBA;16B")]
)
def test_sixteen_bits_are_refused(colour: int, kind: str) -> None:
    """In grey and in colour, with transparency or without."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(1 + 2 * channels))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match=f"^has pixels of the kind {kind}, takes 8 bits a chan"):
        look(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize("content", [b"", b"no image", file(Image.fromarray(PIXELS))[:40]])
def test_what_is_no_picture_is_said_without_addresses(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^cannot be read \(.+\)$") as caught:
        decode(content, 3, look(content).size)
    assert "0x" not in str(caught.value)


def test_a_size_that_is_not_what_was_announced() -> None:
    with pytest.raises(ValueError, match="its size is not what it announces"):
        decode(file(Image.fromarray(PIXELS)), 3, (5, 4))

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
USED = Image.fromarray(np.array([[0, 2]], np.uint8))
USED.putpalette([7, 7, 7, 255, 0, 0, 9, 9, 9])
HIDDEN = Image.fromarray(np.array([[0, 1]], np.uint8))
HIDDEN.putpalette([7, 7, 7, 255, 0, 0])
LAYERED = {
    "grey": (file(Image.fromarray(np.array([[[0, 0], [9, 255]]], np.uint8))), [255, 9]),
    "grey palette with an unused colour": (file(USED), [7, 9]),
    "grey palette with an unused colour, transparent": (
        file(USED, transparency=bytes([255, 255, 0])),
        [7, 255],
    ),
    "grey palette with a transparent colour": (file(HIDDEN, transparency=1), [7, 255]),
    "palette with a half transparent colour": (
        file(HIDDEN, transparency=bytes([255, 128])),
        [[7, 7, 7], [255, 127, 127]],
    ),
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


def jpeg_2000(mode: str, bits: list[int], **options: Any) -> bytes:
    """Return a JPEG 2000 file whose channels are said to have so many bits."""
    content = file(Image.new(mode, (1, 1)), "JPEG2000", **options)
    at = content.index(b"\xff\x4f\xff\x51") + 42
    for each in bits:
        content = content[:at] + bytes([each - 1]) + content[at + 1 :]
        at += 3
    return content


SGI = struct.pack(">HBBHHHHII", 474, 0, 2, 3, 1, 1, 3, 0, 65535).ljust(512, b"\0") + bytes(6)


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"P6 1 1 65535\n" + bytes(6), "RGB;16"),
        (b"P6 1 1 1023\n" + bytes(6), "RGB;16"),
        (b"P3 1 1 256\n0 0 256\n", "RGB;16"),
        (b"P5 1 1 1023\n" + bytes(2), "I"),
        (b"P5 1 1 65535\n" + bytes(2), "I"),
        (jpeg_2000("RGB", [16] * 3), "RGB;16"),
        (jpeg_2000("RGB", [8, 8, 12], no_jp2=True), "RGB;12"),
        (jpeg_2000("LA", [16, 8]), "LA;16"),
        (jpeg_2000("L", [16], no_jp2=True), "I;16"),
        (SGI, "RGB;16"),
    ],
)
def test_more_than_eight_bits_are_refused(content: bytes, kind: str) -> None:
    """Of formats that have no name for them of their own."""
    with pytest.raises(ValueError, match=f"^has pixels of the kind {kind}, takes 8 bits a chan"):
        look(content)


@pytest.mark.parametrize(
    "content, grey",
    [
        (b"P6 1 1 255\n" + bytes(3), False),
        (b"P6 1 1 15\n" + bytes(3), False),
        (b"P5 1 1 15\n" + bytes(1), True),
        (file(Image.new("RGB", (300, 1)), "PPM"), False),
        (jpeg_2000("RGB", []), False),
        (jpeg_2000("L", [], no_jp2=True), True),
    ],
)
def test_eight_bits_of_these_formats_are_taken(content: bytes, grey: bool) -> None:
    found = look(content)
    assert found.grey == grey and not decode(content, 3, found.size).any()


@pytest.mark.parametrize("content", [b"", b"no image", file(Image.fromarray(PIXELS))[:40]])
def test_what_is_no_picture_is_said_without_addresses(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^cannot be read \(.+\)$") as caught:
        decode(content, 3, look(content).size)
    assert "0x" not in str(caught.value)


def test_a_size_that_is_not_what_was_announced() -> None:
    with pytest.raises(ValueError, match="its size is not what it announces"):
        decode(file(Image.fromarray(PIXELS)), 3, (5, 4))

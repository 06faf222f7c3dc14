"""One picture file of somebody's own as pixels: upright, opaque, in grey or in colour, 8 bits.

Files are taken as bytes: of one on the disk, Python allocates as much as a damaged one announces.

Shapes: image = (ch, h, w).
"""

import io
import re
import struct
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from torch import Tensor

from condensation.errors import one_line

GREY, COLOUR = frozenset({"1", "L", "LA"}), frozenset({"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
"""What Pillow calls the kinds of pixels that are taken."""

_BACKGROUND = "white"
"""Behind what is transparent, as on paper."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Exif's orientation -> what makes the picture upright; from 5 on, height and width are swapped."""


class Look(NamedTuple):
    """What a file says of its picture.

    Attributes:
        grey: Whether it has no colour.
        size: Height and width of the upright picture.
    """

    grey: bool
    size: tuple[int, int]


def look(content: bytes) -> Look:
    """Return what a file says of its picture, which is not decoded: that may be enormous.

    Except for one with a palette: only its pixels tell which of the colours it has.

    Raises:
        ValueError: It is not a picture that can be used; the message goes on after the file's name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what beside the pixels is damaged
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _opened(content) as image:
                kind, (width, height) = _kind(image, content), image.size
                sideways = _orientation(image, content) >= 5
                grey = kind in GREY or (kind == "P" and _is_grey(image))
    except Exception as error:  # a decoder stumbles over damaged bytes in a way of its own
        raise ValueError(f"cannot be read ({_reason(error)})") from None
    if kind not in GREY | COLOUR:
        raise ValueError(f"has pixels of the kind {kind}, takes 8 bits a channel")
    return Look(grey, (width, height) if sideways else (height, width))


def decode(content: bytes, num_channels: int, size: tuple[int, int]) -> Tensor:
    """Return a picture that `look` takes: (ch, h, w) uint8, upright, on a white background.

    Args:
        content: Of the file.
        num_channels: 1 for grey, 3 for colour.
        size: Height and width as of `look`.

    Raises:
        ValueError: It cannot be decoded; the message goes on after the file's name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they name no file
            with _opened(content) as image:
                turn = _TURNS.get(_orientation(image, content))
                opaque = _opaque(image, "L" if num_channels == 1 else "RGB")
                array = np.array(opaque if turn is None else opaque.transpose(turn))
        if array.shape[:2] != size:
            raise ValueError("its size is not what it announces")
    except Exception as error:
        raise ValueError(f"cannot be read ({_reason(error)})") from None
    pixels = torch.from_numpy(array)
    return pixels[None] if num_channels == 1 else pixels.permute(2, 0, 1)


def _opened(content: bytes) -> ImageFile:
    return Image.open(io.BytesIO(content))


def _kind(image: ImageFile, content: bytes) -> str:
    # Pillow gives more than 8 bits of a colour as 8; only how they lie in the file tells:
    # `RGB;16B`, or the largest value of a PPM file. Of AVIF nothing tells: its 10 and 12 bits are
    # taken as the 8 that Pillow makes of them.
    if image.mode not in GREY | COLOUR:
        return image.mode
    if image.format == "JPEG2000" and (bits := _bits_of_jpeg_2000(content)) > 8:
        return f"{image.mode};{bits}"
    for tile in image.tile:
        if tile.codec_name == "SGI16":
            return f"{image.mode};16"
        for argument in tile.args if isinstance(tile.args, tuple) else (tile.args,):
            if isinstance(argument, str) and ";16" in argument:
                return argument
            if image.format == "PPM" and isinstance(argument, int) and argument > 255:
                return f"{image.mode};16"
    return image.mode


def _bits_of_jpeg_2000(content: bytes) -> int:
    # Return the most of any channel. After the two markers that the pixels begin with, and sizes,
    # there are the number of channels and 3 bytes of each: its bits less one and a sign, and steps.
    sizes = content.partition(b"\xff\x4f\xff\x51")[2]
    channels = sizes[38 : 38 + 3 * int.from_bytes(sizes[36:38])]
    return max((1 + (bits & 0x7F) for bits in channels[::3]), default=0)


def _is_grey(image: ImageFile) -> bool:
    # Whether a picture with a palette has no colour: what is transparent has none.
    red, green, blue, alpha = np.moveaxis(np.array(image.convert("RGBA")), 2, 0)
    return bool((((red == green) & (green == blue)) | (alpha == 0)).all())


def _orientation(image: ImageFile, content: bytes) -> int:
    # Return Exif's orientation: 1 where there is none, or where it is damaged.
    if image.format == "TIFF":  # which Pillow itself makes upright
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if image.format == "PNG" and (exif := _exif_of_png(content)):
                # It may stand behind the pixels, and Pillow would decode these to see.
                image.info["exif"] = exif
            # Not a PNG's own `getexif`, which decodes.
            found = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def _exif_of_png(content: bytes) -> bytes:
    # A PNG file is a signature of 8 bytes and chunks: length, name, content, checksum.
    at = 8
    while at + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        if name == b"eXIf":
            return content[at + 8 : at + 8 + length]
        at += 12 + length
    return b""


def _opaque(image: ImageFile, mode: str) -> Image.Image:
    # Return the picture in grey ("L") or colour ("RGB") on the background.
    image.load()  # some formats know only then what is transparent
    if not image.has_transparency_data:
        return image.convert(mode)
    layered = image.convert("LA" if mode == "L" else "RGBA")
    ground = Image.new(mode, image.size, _BACKGROUND)
    ground.paste(layered.convert(mode), mask=layered.getchannel("A"))
    return ground


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):  # it tells where in the memory the bytes are
        return "it is no picture that Pillow can read"
    text = re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>", "it", str(error))
    return one_line(text) or type(error).__name__

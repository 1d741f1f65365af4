"""GIF, WebP, TIFF and BMP, decoded by Pillow after additional checks."""

import io
import struct
from typing import Any

from PIL import BmpImagePlugin, GifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin

from segnet_jax.system.errors import UserError

_TIFF = (b"II*\0", b"MM\0*")
_PLUGINS: dict[str, Any] = {
    "GIF": GifImagePlugin.GifImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
_KINDS = {
    **{"1": ("grey", 1), "L": ("grey", 8), "P": ("palette", 8), "RGB": ("RGB", 8), "RGBA": ("RGBA", 8)},
    **{"LA": ("grey+alpha", 8), "CMYK": ("CMYK", 8), "RGBX": ("RGB", 8)},
    **{mode: ("grey", 16) for mode in ("I;16", "I;16B", "I;16L")},
    **{"I": ("grey of 32 bits", 32), "F": ("grey of floating-point numbers", 32)},
}
"""Pillow's mode -> (kind, bits per channel) of a header."""

MAX_PIXELS_WEBP = 30_000_000
"""Limit for WebP, whose decoder takes 18 bytes per pixel; other decoders take at most 12."""
_MAX_TAGS = 1_000
_MAX_TILE = 2**24
"""Pixels of a tile: libtiff unpacks whole tiles, however small the image is."""
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_TAG_BYTES = {2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # by the type of a tag


def other_format(data: bytes) -> str:
    """Detect GIF, WebP, TIFF or BMP by a file's first bytes; return "" for other formats."""
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:4] in _TIFF:
        return "TIFF"
    return "BMP" if data[:2] == b"BM" and len(data) > 26 else ""


def is_lossy(image: Image.Image, data: bytes, kind: str) -> bool:
    """Return whether an opened image was stored with lossy compression."""
    if kind == "WEBP":
        return b"VP8 " in data[12:64]
    return kind == "TIFF" and "jpeg" in str(image.info.get("compression", ""))


def open_other(data: bytes, kind: str, name: str) -> Image.Image:
    """Open a file of one of these formats without decoding it.

    Raises:
      UserError: If it is damaged or contains several images.
    """
    try:
        if kind == "TIFF":
            check_tags(data)
        image = _PLUGINS[kind](io.BytesIO(data))
        if kind == "BMP" and any(tile[0] == "bmp_rle" for tile in image.tile):
            raise ValueError("it is run-length encoded")  # decoded in Python, at a microsecond per pixel
        is_animated = getattr(image, "is_animated", False)  # counting the frames would take seconds
    except MemoryError:
        raise
    except Exception as error:  # these decoders fail in many ways on damaged files
        raise _damaged(name, kind, error) from None
    if is_animated:
        raise UserError(
            f"{name} contains several images",
            kind="several-pictures",
            file=name,
            fix="save each image as a separate file",
        )
    return image


def check_tags(data: bytes) -> None:
    """Check the tags and the tile size of a TIFF, because Pillow copies all tags and libtiff unpacks whole tiles.

    Raises:
      ValueError: If there are too many tags, one lies outside the file, they overlap, or the tiles are too large.
      struct.error: If the file ends inside the directory.
    """
    order = "<" if data.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, directory)
    if count > _MAX_TAGS:
        raise ValueError(f"it has {count:,} tags, over the limit of {_MAX_TAGS:,}")
    total, tile = 0, 1
    for place in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, number, value = struct.unpack_from(f"{order}HHII", data, place)
        size = number * _TAG_BYTES.get(kind, 1)
        total += size
        if size > 4 and value + size > len(data) or total > len(data):
            raise ValueError(f"its tag {tag} lies outside the file or overlaps other tags")
        if tag in (_TILE_WIDTH, _TILE_LENGTH):
            tile *= struct.unpack_from(f"{order}H", data, place + 8)[0] if kind == 3 else value
    if tile > _MAX_TILE:
        raise ValueError(f"its tiles have {tile:,} pixels, over the limit of {_MAX_TILE:,}")


def decode_other(image: Image.Image, kind: str, name: str) -> Image.Image:
    """Decode an image from `open_other`.

    Raises:
      UserError: If it is damaged.
    """
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(name, kind, error) from None
    return image


def kind_and_bits(image: Image.Image) -> tuple[str, int]:
    """Return `kind` and `bits` of a `Header` for a Pillow mode."""
    return _KINDS.get(image.mode, (f"of the mode {image.mode}", 8))


def _damaged(name: str, kind: str, error: Exception) -> UserError:
    state, fault = ("cut off", "cut-off") if "truncated" in str(error) else (f"a damaged {kind}", "broken-data")
    return UserError(f"{name} is {state}: {str(error)[:200]}", kind=fault, file=name, fix="fetch or export it again")

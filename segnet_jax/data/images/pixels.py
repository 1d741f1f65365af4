"""Images with any number of channels of 8 or 16 bits, decoded to their stored values.

Pillow supports neither several channels of 16 bits nor more than four channels. Here, its decoder is used twice for
16-bit PNGs, and TIFFs (uncompressed or with Deflate, as most programs write them) are decoded block by block.
"""

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from segnet_jax.constants import MAX_CHANNELS, Pixels
from segnet_jax.system.errors import UserError

CHANNELS = {"grey": 1, "grey+alpha": 2, "RGB": 3, "RGBA": 4}
"""Kind of a header -> number of stored channels."""
_MAX_BYTES = 2**30
"""Limit for the decoded size; Deflate can compress a thousandfold."""
_MOST_PADDED_BYTES = 2**24
"""Limit for a tile that is larger than its image."""

_LOW_BYTES = {"RGB": ("RGB", "RGB;16L"), "RGBA": ("RGBA", "RGBA;16L")}


def stored_pixels(kind: str, bits: int) -> Pixels | None:
    """Return the pixel format of a header's kind and bits, or None if it cannot be read as stored."""
    if bits not in (8, 16):
        return None
    if kind.endswith(" channels") and kind.split()[1].isdecimal():
        return Pixels(int(kind.split()[1]), bits)
    return Pixels(CHANNELS[kind], bits) if kind in CHANNELS else None


def check_pixels(kind: str, bits: int, pixels: Pixels, name: str) -> None:
    """Check that a file has the pixel format `pixels`.

    Raises:
      UserError: If it does not.
    """
    found = stored_pixels(kind, bits)
    if found == pixels:
        return
    what = f"{kind}, {bits} bits" if found is None else str(found)
    message = f"image {name} has pixels of {what}, instead of {pixels}"
    fix = "leave it out or convert it" if found is None else f"convert it, or if all are alike, use {flags(found)}"
    raise UserError(message, kind="other-channels", file=name, fix=fix)


def flags(pixels: Pixels) -> str:
    """Return the flags for reading images of a format."""
    return f"--channels {pixels.channels} --image-bits {pixels.bits}"


# --- PNG ---


def decode_png16(image: Image.Image, again: Image.Image, kind: str) -> np.ndarray:
    """Decode a 16-bit PNG with several channels, of which Pillow returns only the high bytes.

    Args:
      image: the file, opened but not loaded.
      again: the file, opened a second time.
      kind: "grey+alpha", "RGB" or "RGBA".

    Returns:
      uint16 [H,W,C].
    """
    if kind == "grey+alpha":  # each pixel has four bytes, like 8-bit RGBA
        image._mode = "RGBA"
        image.tile = [image.tile[0]._replace(args="RGBA")]
        return np.ascontiguousarray(np.asarray(image)).view(">u2").astype(np.uint16)
    values = np.asarray(image).astype(np.uint16)
    image.close()  # frees its pixels
    values <<= 8
    again.tile = [again.tile[0]._replace(args=_LOW_BYTES[kind][1])]  # reading as little-endian returns the low bytes
    values |= np.asarray(again)
    return values


# --- TIFF ---

_TYPES = {1: "B", 3: "H", 4: "I"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _OFFSETS, _ORIENTATION = 256, 257, 258, 259, 262, 273, 274
_SAMPLES, _ROWS, _COUNTS, _PLANAR, _PREDICTOR, _FORMAT = 277, 278, 279, 284, 317, 339
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325


def tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """Return the integer tags of a TIFF's first directory.

    Raises:
      ValueError: If the directory is damaged.
    """
    order = "<" if data.startswith(b"II") else ">"
    tags = {}
    try:
        (directory,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, directory)
        for place in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(f"{order}HHI", data, place)
            if kind not in _TYPES or number > len(data):
                continue
            size = struct.calcsize(f"{order}{number}{_TYPES[kind]}")
            start = place + 8 if size <= 4 else struct.unpack_from(f"{order}I", data, place + 8)[0]
            tags[tag] = struct.unpack_from(f"{order}{number}{_TYPES[kind]}", data, start)
        if min(tags[_WIDTH][0], tags[_HEIGHT][0]) < 1:
            raise ValueError("it has no pixels")
    except (struct.error, KeyError, IndexError) as error:
        raise ValueError(f"its directory cannot be read ({error})") from None
    return tags


def tiff_pixels(tags: dict[int, tuple[int, ...]]) -> Pixels | None:
    """Return the format of a TIFF's pixels; None if its channels are not unsigned integers of 8 or 16 bits."""
    channels, bits = _first(tags, _SAMPLES, 1), set(tags.get(_BITS, (1,)))
    is_unsigned = set(tags.get(_FORMAT, (1,))) == {1}
    is_plain = _first(tags, _PHOTOMETRIC, 1) not in (0, 3)  # "white is 0" and palettes are left to Pillow
    if not is_plain or not is_unsigned or bits not in ({8}, {16}) or not 1 <= channels <= MAX_CHANNELS:
        return None
    return Pixels(channels, bits.pop())


def is_upright(tags: dict[int, tuple[int, ...]]) -> bool:
    """Return whether a TIFF has no rotation."""
    return _first(tags, _ORIENTATION, 1) == 1


def size_of(tags: dict[int, tuple[int, ...]]) -> tuple[int, int]:
    """Return width and height of a TIFF."""
    return tags[_WIDTH][0], tags[_HEIGHT][0]


def has_more_images(data: bytes) -> bool:
    """Return whether a TIFF has a second directory; `tiff_tags` must accept the first one."""
    order = "<" if data.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, directory)
    return any(data[directory + 2 + 12 * count :][:4])


def read_tiff(data: bytes, pixels: Pixels) -> np.ndarray:
    """Decode a TIFF in the format `pixels`, to [H,W,C] in its dtype.

    Raises:
      ValueError: If it is damaged, too large, or compressed with a method other than Deflate.
    """
    tags = tiff_tags(data)
    height, width, channels = tags[_HEIGHT][0], tags[_WIDTH][0], pixels.channels
    num_bytes = height * width * pixels.num_bytes
    if num_bytes > _MAX_BYTES:
        raise ValueError(f"its pixels take {num_bytes / 1e9:.1f} GB, over the limit of {_MAX_BYTES / 1e9:.1f} GB")
    compression, predictor = _first(tags, _COMPRESSION, 1), _first(tags, _PREDICTOR, 1)
    if compression not in (1, 8, 32946) or predictor not in (1, 2):
        raise ValueError("it is compressed in a way that is not supported; save it uncompressed or with Deflate")
    block_bytes = math.prod(_block_size(tags)) * pixels.num_bytes
    if block_bytes > max(num_bytes, _MOST_PADDED_BYTES):  # a tile may exceed a small image
        raise ValueError(f"its tiles take {block_bytes / 1e6:.0f} MB each, more than the image")
    dtype = np.dtype(pixels.dtype).newbyteorder("<" if data.startswith(b"II") else ">")
    planes = channels if _first(tags, _PLANAR, 1) == 2 else 1
    whole = np.empty((planes, height, width, channels // planes), pixels.dtype)
    for (plane, top, left, rows, columns), block in zip(_blocks(tags, planes), _stored(data, tags), strict=True):
        size = rows * columns * channels // planes * dtype.itemsize
        if compression != 1:
            block = zlib.decompressobj().decompress(block, size)
        if len(block) < size:
            raise ValueError(f"a block has {len(block)} bytes instead of {size}")
        values = np.frombuffer(block[:size], dtype).reshape(rows, columns, -1).astype(pixels.dtype)
        if predictor == 2 and compression != 1:  # differences of neighbors in a row, modulo the range
            values = np.cumsum(values, axis=1, dtype=pixels.dtype)
        part = whole[plane, top : top + rows, left : left + columns]
        part[:] = values[: part.shape[0], : part.shape[1]]
    return np.ascontiguousarray(np.moveaxis(whole[..., 0], 0, -1)) if planes > 1 else whole[0]


def _first(tags: dict[int, tuple[int, ...]], tag: int, default: int) -> int:
    return tags[tag][0] if tags.get(tag) else default


def _block_size(tags: dict[int, tuple[int, ...]]) -> tuple[int, int]:
    """Return rows and columns of a strip or tile."""
    height, width = tags[_HEIGHT][0], tags[_WIDTH][0]
    if _TILE_OFFSETS in tags:
        rows, columns = _first(tags, _TILE_HEIGHT, 0), _first(tags, _TILE_WIDTH, 0)
    else:
        rows, columns = min(_first(tags, _ROWS, height), height), width
    if min(rows, columns) < 1:
        raise ValueError("its strips or tiles have no pixels")
    return rows, columns


def _blocks(tags: dict[int, tuple[int, ...]], planes: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (plane, top, left, rows, columns) of each strip or tile, as stored."""
    height, width = tags[_HEIGHT][0], tags[_WIDTH][0]
    is_tiled = _TILE_OFFSETS in tags
    rows, columns = _block_size(tags)
    for plane in range(planes):
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                yield plane, top, left, rows if is_tiled else min(rows, height - top), columns


def _stored(data: bytes, tags: dict[int, tuple[int, ...]]) -> Iterator[bytes]:
    """Yield the stored bytes of each strip or tile."""
    names = (_TILE_OFFSETS, _TILE_COUNTS) if _TILE_OFFSETS in tags else (_OFFSETS, _COUNTS)
    offsets, counts = (tags.get(tag, ()) for tag in names)
    for offset, count in zip(offsets, counts, strict=True):
        if offset + count > len(data):
            raise ValueError("a block lies outside the file")
        yield data[offset : offset + count]

"""Parse image containers, so that only the parts that determine the pixels reach the decoder.

Animations, thumbnails, color profiles, comments and compressed texts do not affect the pixels, but may make decoders
warn, fail in many ways, or unpack a decompression bomb.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_JPEG_SCAN, _JPEG_END, _JPEG_EXIF = 0xDA, 0xD9, 0xE1
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # frame headers of all codings
_JPEG_COMMENTS = {*range(0xE0, 0xF0), 0xFE} - {0xE0, 0xEE}  # JFIF's and Adobe's define the color space
_ORIENTATION = 0x0112  # tag in EXIF
_MAX_CHUNKS = 100_000  # libpng writes pixels in chunks of 8 kB: 50 million pixels of four bytes are 25,000 chunks
_CHUNK_BYTES = 4096  # a larger file may have more chunks, of this mean size
_MAX_SEGMENTS = 10_000
MAX_SCANS = 64
"""Limit for a progressive JPEG: encoders write about 10 scans, and even an empty scan is a pass over all pixels."""


class Frame(NamedTuple):
    """Frame header of a JPEG."""

    width: int
    height: int
    channels: int
    bits: int


class Segment(NamedTuple):
    """A JPEG segment before the pixels, [start, stop) with its marker."""

    marker: int
    start: int
    stop: int


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the chunks of a PNG: kind, start and stop; the content is [start + 8, stop - 4).

    Raises:
      ValueError: If the file is truncated or has too many chunks.
    """
    place, kind, count = len(PNG_SIGNATURE), b"", 0
    most = max(_MAX_CHUNKS, len(data) // _CHUNK_BYTES)
    while kind != b"IEND":
        count += 1
        if count > most:
            raise ValueError(f"the PNG has over {most:,} chunks")
        length, kind = struct.unpack(">I4s", data[place : place + 8].ljust(8, b"\0"))
        stop = place + 12 + length
        if stop > len(data):
            raise ValueError(f"the file ends inside the PNG, after {len(data)} bytes")
        yield kind, place, stop
        place = stop


def jpeg_frame(data: bytes) -> Frame:
    """Return the frame header of a JPEG.

    Raises:
      ValueError: If there is not exactly one frame header, or the file is damaged before its pixels.
    """
    frames = [segment for segment in _jpeg_segments(data) if segment.marker in _JPEG_FRAMES]
    if len(frames) != 1 or frames[0].stop - frames[0].start < 10:
        raise ValueError(f"it has {len(frames)} frame headers")
    bits, height, width, channels = struct.unpack_from(">BHHB", data, frames[0].start + 4)
    return Frame(width, height, channels, bits)


def jpeg_scans(data: bytes) -> int:
    """Return an upper bound on the number of scans in a JPEG: how often the marker occurs in its bytes."""
    return data.count(bytes([0xFF, _JPEG_SCAN]))


def essential(data: bytes) -> bytes:
    """Return a PNG or JPEG, already checked by `inspect`, without the parts that do not affect the pixels."""
    if data.startswith(PNG_SIGNATURE):
        kept = [data[start:stop] for kind, start, stop in png_chunks(data) if kind in _PNG_PIXELS]
        return b"".join([PNG_SIGNATURE, *kept])
    segments = list(_jpeg_segments(data))
    kept = [data[start:stop] for marker, start, stop in segments if marker not in _JPEG_COMMENTS]
    return b"".join([data[:2], *kept, data[segments[-1].stop :]])


def png_transparency(data: bytes) -> bytes:
    """Return the tRNS chunk of a PNG, or b"" if it has none."""
    found = [data[start + 8 : stop - 4] for kind, start, stop in png_chunks(data) if kind == b"tRNS"]
    return found[0] if found else b""


def orientation(data: bytes) -> int:
    """Return the EXIF orientation, 1 to 8, or 1 if it is missing or unreadable."""
    if data.startswith(PNG_SIGNATURE):
        found = [data[start + 8 : stop - 4] for kind, start, stop in png_chunks(data) if kind == b"eXIf"]
    elif data[:4] in (b"II*\0", b"MM\0*"):
        return _tiff_orientation(data)
    elif data[:4] == b"RIFF":
        found = [data[start + 8 : stop] for kind, start, stop in _riff_chunks(data) if kind == b"EXIF"]
    elif not data.startswith(b"\xff\xd8"):
        return 1
    else:
        segments = (segment for segment in _jpeg_segments(data) if segment.marker == _JPEG_EXIF)
        found = [data[start + 4 : stop] for _, start, stop in segments if data.startswith(b"Exif\0\0", start + 4)]
    return _tiff_orientation(found[0].removeprefix(b"Exif\0\0")) if found else 1


def _jpeg_segments(data: bytes) -> Iterator[Segment]:
    """Yield the segments before the first scan.

    Raises:
      ValueError: If a segment is invalid.
    """
    place = 2
    for _ in range(_MAX_SEGMENTS):
        start = place
        while data[place : place + 1] == b"\xff":  # fill bytes
            place += 1
        marker = data[place] if start < place < len(data) else 0
        if marker in (_JPEG_SCAN, _JPEG_END):
            return
        length = int.from_bytes(data[place + 1 : place + 3])
        if not 0xC0 <= marker <= 0xFE or length < 2 or place + 1 + length > len(data):
            raise ValueError(f"there is no JPEG segment at byte {start}, or the file ends inside it")
        start, place = place - 1, place + 1 + length
        yield Segment(marker, start, place)
    raise ValueError(f"it has over {_MAX_SEGMENTS:,} segments")


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the chunks of a WebP: kind, start and stop; the content begins at start + 8."""
    place = 12
    while place + 8 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        yield data[place : place + 4], place, place + 8 + length
        place += 8 + length + length % 2


def _tiff_orientation(exif: bytes) -> int:
    """Return the orientation tag in the first directory of EXIF data, which has the structure of a TIFF."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2], "")
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for place in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, place)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # truncated: no viewer would apply it
    return 1

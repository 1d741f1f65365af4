"""What of a picture file decides its pixels and which way up they are. All else never reaches the decoder.

Animations, thumbnails, colour profiles, comments and packed texts change no pixel here, and are where a decoder warns,
fails in many ways, or unpacks a bomb.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_JPEG_SCAN, _JPEG_END, _JPEG_EXIF = 0xDA, 0xD9, 0xE1
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # headers of a frame, in all ways of packing
_JPEG_COMMENTS = {*range(0xE0, 0xF0), 0xFE} - {0xE0, 0xEE}  # JFIF's and Adobe's tell how colours are stored
_ORIENTATION = 0x0112  # tag in EXIF
_MOST_CHUNKS = 100_000  # libpng writes pixels in chunks of 8 kB: 50 million pixels of four bytes are 25,000
_MOST_SEGMENTS = 10_000
MOST_SCANS = 64
"""Of a progressive JPEG: encoders write 10 or so; each is a pass over all pixels, though it may have a few bytes."""


class Frame(NamedTuple):
    """What a JPEG says of its pixels."""

    width: int
    height: int
    channels: int
    bits: int


class Segment(NamedTuple):
    """A part of a JPEG before its pixels, [start, stop) with its marker."""

    marker: int
    start: int
    stop: int


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of a PNG to the last: kind, start and stop, of which the content is [start + 8, stop - 4).

    Raises:
      ValueError: the file ends before the PNG does, or it has too many chunks.
    """
    place, kind, count = len(PNG_SIGNATURE), b"", 0
    while kind != b"IEND":
        count += 1
        if count > _MOST_CHUNKS:
            raise ValueError(f"the PNG has over {_MOST_CHUNKS:,} chunks")
        length, kind = struct.unpack(">I4s", data[place : place + 8].ljust(8, b"\0"))
        stop = place + 12 + length
        if stop > len(data):
            raise ValueError(f"the file ends within the PNG, after {len(data)} bytes")
        yield kind, place, stop
        place = stop


def jpeg_frame(data: bytes) -> Frame:
    """The one frame header of a JPEG.

    Raises:
      ValueError: there is none, or more than one, or the file is damaged before its pixels.
    """
    frames = [segment for segment in _jpeg_segments(data) if segment.marker in _JPEG_FRAMES]
    if len(frames) != 1 or frames[0].stop - frames[0].start < 10:
        raise ValueError(f"it has {len(frames)} frame headers")
    bits, height, width, channels = struct.unpack_from(">BHHB", data, frames[0].start + 4)
    return Frame(width, height, channels, bits)


def jpeg_scans(data: bytes) -> int:
    """How many scans a JPEG has at most: inside the coded pixels no other byte follows 0xFF but 0."""
    return data.count(bytes([0xFF, _JPEG_SCAN]))


def essential(data: bytes) -> bytes:
    """The picture with nothing left in it that its pixels do not depend on.

    Args:
      data: a PNG or JPEG that `png_chunks` or `jpeg_frame` has found whole.
    """
    if data.startswith(PNG_SIGNATURE):
        kept = [data[start:stop] for kind, start, stop in png_chunks(data) if kind in _PNG_PIXELS]
        return b"".join([PNG_SIGNATURE, *kept])
    segments = list(_jpeg_segments(data))
    kept = [data[start:stop] for marker, start, stop in segments if marker not in _JPEG_COMMENTS]
    return b"".join([data[:2], *kept, data[segments[-1].stop :]])


def png_transparency(data: bytes) -> bytes:
    """What a PNG without an alpha channel says of transparency: of its palette, or one colour; empty for nothing."""
    found = [data[start + 8 : stop - 4] for kind, start, stop in png_chunks(data) if kind == b"tRNS"]
    return found[0] if found else b""


def orientation(data: bytes) -> int:
    """Which way up a picture is by its EXIF data: 1 to 8, and 1 where it has none that can be read."""
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
    """The segments before the first scan.

    Raises:
      ValueError: what should be a segment is none.
    """
    place = 2
    for _ in range(_MOST_SEGMENTS):
        start = place
        while data[place : place + 1] == b"\xff":  # may be repeated, to fill up
            place += 1
        marker = data[place] if start < place < len(data) else 0
        if marker in (_JPEG_SCAN, _JPEG_END):
            return
        length = int.from_bytes(data[place + 1 : place + 3])
        if not 0xC0 <= marker <= 0xFE or length < 2 or place + 1 + length > len(data):
            raise ValueError(f"no segment of a JPEG at byte {start}, or the file ends within it")
        start, place = place - 1, place + 1 + length
        yield Segment(marker, start, place)
    raise ValueError(f"it has over {_MOST_SEGMENTS:,} segments")


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of a WebP: kind, start and stop, of which the content begins 8 bytes after the start."""
    place = 12
    while place + 8 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        yield data[place : place + 4], place, place + 8 + length
        place += 8 + length + length % 2


def _tiff_orientation(exif: bytes) -> int:
    """The tag in the first directory of EXIF data, which is a TIFF without a picture."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2], "")
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for place in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, place)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # cut off: whoever wrote it, nothing turns a picture by it
    return 1

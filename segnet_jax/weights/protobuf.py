"""The outside of a protobuf message: its fields, without a schema and without trusting any length."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Span:
    """Bytes of a field, [start, stop) in the file.

    `packed` is false for single 32-bit values, each with its own tag: a run of them is one span with the tags in it.
    """

    start: int
    stop: int
    packed: bool = True


def fields(data: np.ndarray, start: int, stop: int) -> Iterator[tuple[int, int | Span]]:
    """Walks over the fields of the message in [start, stop).

    Args:
      data: uint8 [bytes], the whole file.
      start: where the message begins.
      stop: where it ends.

    Yields:
      Each field's number, and its value: an int (unsigned) or where its bytes are.

    Raises:
      ValueError: a field reaches beyond the message, or is of a type that no message here has.
    """
    while start < stop:
        tag_start = start
        tag, start = _varint(data, start, stop)
        number, wire_type = tag >> 3, tag & 7
        match wire_type:
            case 0:
                value, start = _varint(data, start, stop)
                yield number, value
                continue
            case 1:
                end = start + 8
            case 2:
                length, start = _varint(data, start, stop)
                end = start + length
            case 5:
                end = start + 4
            case _:
                raise ValueError(f"field {number} at byte {tag_start} has the unknown type {wire_type}")
        if end > stop:
            raise ValueError(f"field {number} at byte {tag_start} reaches beyond its message: cut off or damaged")
        if wire_type == 5 and start == tag_start + 1:
            start = tag_start
            end = _end_of_run(data, start, stop)
            yield number, Span(start, end, packed=False)
        else:
            yield number, Span(start, end)
        start = end


def varints(data: np.ndarray, span: Span) -> list[int]:
    """The numbers of a packed field of integers."""
    values, position = [], span.start
    while position < span.stop:
        value, position = _varint(data, position, span.stop)
        values.append(value)
    return values


def floats(data: np.ndarray, spans: Iterable[Span]) -> np.ndarray:
    """The float32 numbers of a repeated field, packed or each with its tag."""
    parts = [data[span.start : span.stop] for span in spans]
    values = [part if span.packed else part.reshape(-1, 5)[:, 1:] for part, span in zip(parts, spans, strict=True)]
    joined = np.concatenate([np.zeros(0, np.uint8), *(value.ravel() for value in values)])
    if joined.size % 4:
        raise ValueError("a field of numbers has a broken length")
    return joined.view("<f4")


def _end_of_run(data: np.ndarray, start: int, stop: int) -> int:
    """Where the run of 5-byte fields ends that all have the tag at `start`."""
    tags = data[start : stop - 4 : 5]
    (others,) = np.nonzero(tags != data[start])
    return start + 5 * int(others[0] if others.size else tags.size)


def _varint(data: np.ndarray, position: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= stop:
            raise ValueError(f"ends within a number at byte {position}: cut off or damaged")
        byte = int(data[position])
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError(f"holds a number of more than ten bytes at byte {position}")

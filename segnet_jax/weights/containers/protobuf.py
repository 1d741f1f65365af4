"""The outside of a protobuf message: its fields, without a schema and without trusting any length."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

_MOST_FIELDS = 100_000
"""In all that is read of one file; a network has some thousand. Each costs a microsecond and some bytes of memory."""


@dataclass(frozen=True)
class Span:
    """Bytes of a field, [start, stop) in the file.

    `packed` is false for single 32-bit values, each with its own tag: a run of them is one span with the tags in it.
    """

    start: int
    stop: int
    packed: bool = True


class Wire:
    """The bytes of a file as protobuf sends them.

    Args:
      data: uint8 [bytes].

    Raises:
      ValueError: from all methods: a field reaches beyond its message or is of a type that no message here has, or
        there are more fields than any file read here has.
    """

    def __init__(self, data: np.ndarray):
        self.data = data
        self._left = _MOST_FIELDS

    def fields(self, message: Span) -> Iterator[tuple[int, int | Span]]:
        """Walks over a message.

        Yields:
          Each field's number, and its value: an int (unsigned) or where its bytes are.
        """
        start = message.start
        while start < message.stop:
            tag_start = start
            tag, start = self._varint(start, message.stop)
            number, wire_type = tag >> 3, tag & 7
            match wire_type:
                case 0:
                    value, start = self._varint(start, message.stop)
                    yield number, value
                    continue
                case 1:
                    end = start + 8
                case 2:
                    length, start = self._varint(start, message.stop)
                    end = start + length
                case 5:
                    end = start + 4
                case _:
                    raise ValueError(f"field {number} at byte {tag_start} has the unknown type {wire_type}")
            if end > message.stop:
                raise ValueError(f"field {number} at byte {tag_start} reaches beyond its message: cut off or damaged")
            if wire_type == 5 and start == tag_start + 1:
                start = tag_start
                end = self._end_of_run(start, message.stop)
                yield number, Span(start, end, packed=False)
            else:
                yield number, Span(start, end)
            start = end

    def varints(self, span: Span) -> list[int]:
        """The numbers of a packed field of integers."""
        values, position = [], span.start
        while position < span.stop:
            value, position = self._varint(position, span.stop)
            values.append(value)
        return values

    def floats(self, spans: Iterable[Span], count: int) -> np.ndarray:
        """The float32 numbers of a repeated field, packed or each with its tag: so many, or nothing is read."""
        num_bytes = sum((span.stop - span.start) * (5 if span.packed else 4) // 5 for span in spans)
        if num_bytes != 4 * count:
            raise ValueError(f"a field of {count} numbers holds {num_bytes / 4:g}")
        parts = [(self.data[span.start : span.stop], span.packed) for span in spans]
        values = [part if packed else part.reshape(-1, 5)[:, 1:].ravel() for part, packed in parts]
        return np.concatenate([np.zeros(0, np.uint8), *values]).view("<f4")

    def _end_of_run(self, start: int, stop: int) -> int:
        """Where the run of 5-byte fields ends that all have the tag at `start`."""
        end, step = start, 64  # steps that grow: to look at all that is left for each short run would take for ever
        while end + 5 <= stop:
            tags = self.data[end : min(end + 5 * step, stop - 4) : 5]
            (others,) = np.nonzero(tags != self.data[start])
            if others.size:
                return end + 5 * int(others[0])
            end, step = end + 5 * tags.size, 2 * step
        return end

    def _varint(self, position: int, stop: int) -> tuple[int, int]:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"has more than {_MOST_FIELDS} fields, which no network read here has")
        value = 0
        for shift in range(0, 70, 7):
            if position >= stop:
                raise ValueError(f"ends within a number at byte {position}: cut off or damaged")
            byte = int(self.data[position])
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, position
        raise ValueError(f"holds a number of more than ten bytes at byte {position}")

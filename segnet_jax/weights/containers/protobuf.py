"""Parse the declared fields of protobuf files, after checking that their number is bounded.

The `protobuf` library allocates an object for every submessage, so a crafted file of two-byte submessages would take
thirty times its size in memory. The walk therefore counts the fields of all declared messages first. Undeclared fields
stay unparsed bytes, and messages nest only as deeply as declared.
"""

import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

_MAX_BYTES = 1_000_000_000  # VGG-19 with its classifier has 575 million; the library copies the file into memory
_MAX_FIELDS = 100_000  # a network has a few thousand
_INTEGERS = (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64)


def message_classes(package: str, declarations: Mapping[str, Mapping[str, tuple[int, str]]]) -> dict[str, type]:
    """Build message classes for a subset of a format's fields.

    Args:
      package: unique name of the format.
      declarations: message -> field -> (number, type); a type is a scalar such as "int32" or another message of the
        format, preceded by "repeated " for a repeated field.

    Returns:
      Message -> class.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto2")
    for message, fields in declarations.items():
        declared = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            *repeated, kind = kind.split()
            field = declared.field.add(name=name, number=number)
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind in declarations:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    classes = message_factory.GetMessageClassesForFiles([file.name], pool)
    return {name.removeprefix(f"{package}."): each for name, each in classes.items()}


def parse(path: Path, message_class: type) -> Any:
    """Parse the message in a file.

    Raises:
      ValueError: If the file is damaged or too large, or has more fields than any network.
    """
    if (size := os.path.getsize(path)) > _MAX_BYTES:
        raise ValueError(f"is {size} bytes, over the limit of {_MAX_BYTES} bytes for protobuf files")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _count_fields(data, 0, size, message_class.DESCRIPTOR, _MAX_FIELDS)
        message = message_class()
        try:
            message.ParseFromString(data[:])
        except DecodeError as error:
            raise ValueError(f"is damaged: {error}") from None
    return message


def text(value: bytes) -> str:
    """Decode a name, truncated for use in messages."""
    return value[:200].decode("utf-8", errors="replace")


def floats(values: Iterable[float], shape: tuple[int, ...], dtype: np.typing.DTypeLike = np.float32) -> np.ndarray:
    """Convert a repeated field of numbers to an array.

    Raises:
      ValueError: If the number of values does not match the shape.
    """
    array = np.fromiter(values, dtype)
    if array.size != int(np.prod(shape, dtype=object)):
        raise ValueError(f"a tensor of shape {shape} has {array.size} numbers")
    return array.reshape(shape)


def _count_fields(data: mmap.mmap, start: int, stop: int, message: Descriptor, left: int) -> int:
    """Subtract the number of fields in a message and its declared submessages from `left`.

    Args:
      data: the file.
      start: first byte of the message.
      stop: byte after the message.
      message: declaration of the message.
      left: number of fields still allowed.

    Returns:
      The remaining number of fields.

    Raises:
      ValueError: If there are more fields, or a field extends beyond its message or has an unknown type.
    """
    while start < stop:
        tag_start = start
        tag, start = _varint(data, start, stop)
        number, wire_type = tag >> 3, tag & 7
        field = message.fields_by_number.get(number)
        left -= 1
        match wire_type:
            case 0:
                _, end = _varint(data, start, stop)
            case 1:
                end = start + 8
            case 2:
                length, start = _varint(data, start, stop)
                end = start + length
                if field is not None and field.type in _INTEGERS:
                    left -= length  # packed numbers; each takes at least a byte
            case 5:
                # A run of equal tags, such as unpacked weights, counts once.
                end = start + 4 if start > tag_start + 1 else _end_of_run(data, tag_start, stop)
            case _:
                raise ValueError(f"is damaged: field {number} at byte {tag_start} has unknown wire type {wire_type}")
        if end > stop:
            raise ValueError(f"is cut off or damaged: field {number} at byte {tag_start} extends beyond its message")
        if left < 0:
            raise ValueError(f"has more than {_MAX_FIELDS} fields, which is more than any supported network has")
        if wire_type == 2 and field is not None and field.message_type is not None:
            left = _count_fields(data, start, end, field.message_type, left)
        start = end
    return left


def _end_of_run(data: mmap.mmap, start: int, stop: int) -> int:
    """Return the end of the run of 5-byte fields that share the tag at `start`."""
    end, step = start + 5, 64  # growing steps, so that many short runs do not each scan the rest of the file
    while end + 5 <= stop:
        tags = data[end : min(end + 5 * step, stop - 4) : 5]
        num_same = len(tags) - len(tags.lstrip(data[start : start + 1]))
        end += 5 * num_same
        if num_same < len(tags):
            return end
        step *= 2
    return end


def _varint(data: mmap.mmap, start: int, stop: int) -> tuple[int, int]:
    """Return the varint at `start` and the position after it."""
    value = 0
    for position in range(start, min(start + 10, stop)):
        byte = data[position]
        value |= (byte & 127) << 7 * (position - start)
        if byte < 128:
            return value, position + 1
    if stop <= start + 10:
        raise ValueError(f"is cut off or damaged: it ends within the number at byte {start}")
    raise ValueError(f"is damaged: the number at byte {start} has more than ten bytes")

"""Read the pickle inside a torch file without unpickling it.

A pickle is a small program, and Python's unpickler calls any function that the file names. The interpreter below knows
only the opcodes that torch writes for a dictionary of tensors and builds plain values from them. It never imports or
calls anything that the file names, so a file cannot run code through it.
"""

import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

import numpy as np

_DICT = "collections.OrderedDict"
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETER = "torch._utils._rebuild_parameter"
_DTYPES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
_OPCODES = {  # code -> name and argument type of the opcodes that torch writes for a dictionary of tensors
    opcode.code: (opcode.name, opcode.arg)
    for opcode in pickletools.opcodes
    if opcode.name
    in (
        "PROTO FRAME STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
        "BINSTRING SHORT_BINSTRING EMPTY_DICT EMPTY_LIST EMPTY_TUPLE MARK TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS "
        "SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID REDUCE BUILD"
    ).split()
}
_MAX_OPCODES = 200_000
"""Limit per pickle; a VGG has a few thousand. Each opcode costs microseconds and a hundred bytes of memory."""
_MAX_NAME = 200
_KNOWN = {_DICT, *_TENSORS, _PARAMETER, *_DTYPES}


class CodeInside(ValueError):
    """Raised for a file that contains more than tensors, whose unpickling would run code."""


@dataclass(frozen=True)
class Name:
    """Name of a function or class in the file, such as "torch.FloatStorage"; it is never looked up."""

    text: str


@dataclass(frozen=True)
class Storage:
    """A block of numbers in the file: `num_items` of type `dtype` under `key`; a view of it begins at `offset`."""

    dtype: np.dtype
    key: str
    num_items: int
    offset: int = 0


@dataclass(frozen=True)
class Tensor:
    """A dense tensor inside a storage; offset and strides are in items."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(stream: BinaryIO) -> object:
    """Read the pickle at the stream's position, and leave the stream after it.

    Values are dictionaries, lists, tuples, strings, numbers, None, `Name` and `Tensor`.

    Raises:
      ValueError: If the pickle is damaged.
      CodeInside: If the pickle contains anything else.
    """
    try:
        return _interpret(stream)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"the pickle inside is damaged: {error}") from error


def _interpret(stream: BinaryIO) -> object:
    stack: list = []
    outer: list[list] = []  # the stack below each mark
    memo: dict[int, object] = {}

    def pop_to_mark() -> list:
        nonlocal stack
        items, stack = stack, outer.pop()
        return items

    for _ in range(_MAX_OPCODES):
        opcode, argument = _next_opcode(stream)
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE":
                items = pop_to_mark()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                item = stack.pop()
                _as(list, stack[-1]).append(item)
            case "APPENDS":
                items = pop_to_mark()
                _as(list, stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _put([(key, value)], stack[-1])
            case "SETITEMS":
                items = pop_to_mark()
                _put(zip(items[::2], items[1::2], strict=True), stack[-1])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_name(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(f"{_as(str, module)}.{_as(str, name)}"))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, name = _as(tuple, stack.pop()), _as(Name, stack.pop())
                stack.append(_build(name.text, arguments))
            case "BUILD":  # sets attributes of a dictionary, such as torch's `_metadata`; ignored
                stack.pop()
                _as(dict, stack[-1])
            case other:
                raise AssertionError(f"opcode {other} is allowed but not implemented")
    raise ValueError(f"the pickle inside has more than {_MAX_OPCODES} opcodes; a weight file has a few thousand")


def _next_opcode(stream: BinaryIO) -> tuple[str, object]:
    """Return the name and argument of the next opcode; no argument is read unless the opcode is allowed."""
    code = stream.read(1).decode("latin1")
    if not code:
        raise ValueError("the pickle inside is cut off")
    if code not in _OPCODES:
        name = next((opcode.name for opcode in pickletools.opcodes if opcode.code == code), repr(code))
        raise CodeInside(f"contains code, which is not run: the pickle opcode {name}")
    name, argument = _OPCODES[code]
    if name == "GLOBAL":  # pickletools would interpret escapes in the names and warn about some
        return name, f"{_line(stream)}.{_line(stream)}"
    return name, None if argument is None else argument.reader(stream)


def _line(stream: BinaryIO) -> str:
    line = stream.readline(_MAX_NAME)
    if not line.endswith(b"\n"):
        raise ValueError("the pickle inside is cut off or has an overlong name")
    return line[:-1].decode()


def _as(kind: type, value: object):
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _put(pairs: Iterable, target: object) -> None:
    """Set items whose keys must be strings: hashing a tuple nested a million times would crash Python."""
    for key, value in pairs:
        _as(dict, target)[_as(str, key)] = value


def _name(text: str) -> Name:
    if text not in _KNOWN:
        raise CodeInside(f"contains code, which is not run: it names {text}; a weight file must contain only tensors")
    return Name(text)


def _build(name: str, arguments: tuple) -> object:
    if name == _DICT:
        items: dict[str, object] = {}
        _put(*arguments or [()], items)
        return items
    if name in _TENSORS:
        return _tensor(*arguments[:4])
    if name == _PARAMETER:
        return _as(Tensor, arguments[0])
    raise TypeError(f"{name} is called as a function")


def _storage(description: object) -> Storage:
    """Return a storage from torch's persistent id ("storage", type, key, device, size and, in old files, a view)."""
    tag, kind, key, _, num_items, *rest = _as(tuple, description)
    key, kind = _as(str, key), _as(Name, kind).text
    if tag != "storage" or kind not in _DTYPES:
        raise TypeError(f"expected a storage, got {kind}")
    view = rest[0] if rest else None
    offset, num_viewed = (0, num_items) if view is None else _as(tuple, view)[1:3]
    if _count(offset) + _count(num_viewed) > _count(num_items):
        raise ValueError(f"storage {key} has a view beyond its {num_items} numbers")
    return Storage(np.dtype(_DTYPES[kind]), key, num_items, offset)


def _tensor(storage: object, offset: object, shape: object, strides: object) -> Tensor:
    """Return a tensor, after checking that it is dense and inside its storage."""
    storage = _as(Storage, storage)
    shape, strides = tuple(map(_count, _as(tuple, shape))), tuple(map(_count, _as(tuple, strides)))
    if len(shape) != len(strides) or len(shape) > 8:
        raise ValueError(f"a tensor has the invalid shape {shape[:9]} or strides {strides[:9]}")
    num_items = prod(shape)
    if num_items and num_items != 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)):
        raise ValueError(f"a tensor of shape {shape} is stored with gaps or overlaps (strides {strides})")
    offset = storage.offset + _count(offset)
    if offset + num_items > storage.num_items:
        raise ValueError(f"a tensor of shape {shape} extends beyond the {storage.num_items} numbers of its storage")
    return Tensor(storage, offset, shape, strides)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise TypeError(f"expected a count, got {type(value).__name__}")
    return value

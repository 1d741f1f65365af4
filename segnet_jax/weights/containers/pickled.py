"""Reads the pickle inside a torch file without running it.

A pickle is a small program, and Python's interpreter for it calls whatever function the file names. The one below knows
only the steps that torch writes for a dictionary of tensors, and builds plain values from them. It imports nothing that
the file names and calls nothing that the file names, so no file can run code through it.
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
_STEPS = {  # code -> name and kind of argument, of the steps that torch writes for a dictionary of tensors
    opcode.code: (opcode.name, opcode.arg)
    for opcode in pickletools.opcodes
    if opcode.name
    in (
        "PROTO FRAME STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
        "BINSTRING SHORT_BINSTRING EMPTY_DICT EMPTY_LIST EMPTY_TUPLE MARK TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS "
        "SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID REDUCE BUILD"
    ).split()
}
_MOST_STEPS = 200_000
"""Of one pickle; a VGG's has some thousand. Each costs microseconds and a hundred bytes of memory."""
_LONGEST_NAME = 200
_KNOWN = {_DICT, *_TENSORS, _PARAMETER, *_DTYPES}


class CodeInside(ValueError):
    """A file asks for more than tensors: to read it as its writer meant would run code that it names."""


@dataclass(frozen=True)
class Name:
    """A function or class that the file names, such as "torch.FloatStorage"; only its name is ever used."""

    text: str


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file: `num_items` of `dtype` under `key`, of which a view begins at `offset`."""

    dtype: np.dtype
    key: str
    num_items: int
    offset: int = 0


@dataclass(frozen=True)
class Tensor:
    """A dense tensor inside a storage; offset and strides count items."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(stream: BinaryIO) -> object:
    """Returns what the pickle at the stream's position describes, and leaves the stream behind it.

    Dictionaries, lists, tuples, strings, numbers, None, `Name` and `Tensor` are all there can be.

    Raises:
      ValueError: the pickle is damaged, or asks for anything else.
    """
    try:
        return _interpret(stream)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"the pickle inside is damaged: {error}") from error


def _interpret(stream: BinaryIO) -> object:
    stack: list = []
    outer: list[list] = []  # the stacks below each mark
    memo: dict[int, object] = {}

    def pop_to_mark() -> list:
        nonlocal stack
        items, stack = stack, outer.pop()
        return items

    for _ in range(_MOST_STEPS):
        step, argument = _next_step(stream)
        match step:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(step == "NEWTRUE")
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
                count = int(step[-1])
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
            case "BUILD":  # attributes of a dictionary, such as torch's `_metadata`: not needed
                stack.pop()
                _as(dict, stack[-1])
            case other:
                raise AssertionError(f"{other} is allowed and not known")
    raise ValueError(f"the pickle inside has more than {_MOST_STEPS} steps, and a weight file's some thousand")


def _next_step(stream: BinaryIO) -> tuple[str, object]:
    """The name of the next step and its argument, which is not even read of a step that is not allowed."""
    code = stream.read(1).decode("latin1")
    if not code:
        raise ValueError("the pickle inside is cut off")
    if code not in _STEPS:
        name = next((opcode.name for opcode in pickletools.opcodes if opcode.code == code), repr(code))
        raise CodeInside(f"refuses to run code in it: the pickle step {name}")
    name, argument = _STEPS[code]
    if name == "GLOBAL":  # pickletools would look for escapes in the names, and warn of some
        return name, f"{_line(stream)}.{_line(stream)}"
    return name, None if argument is None else argument.reader(stream)


def _line(stream: BinaryIO) -> str:
    line = stream.readline(_LONGEST_NAME)
    if not line.endswith(b"\n"):
        raise ValueError("the pickle inside is cut off, or has a name without an end")
    return line[:-1].decode()


def _as(kind: type, value: object):
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} where {kind.__name__} is due")
    return value


def _put(pairs: Iterable, target: object) -> None:
    """Only strings are keys: to hash a tuple that is nested a million times deep would crash Python."""
    for key, value in pairs:
        _as(dict, target)[_as(str, key)] = value


def _name(text: str) -> Name:
    if text not in _KNOWN:
        raise CodeInside(f"refuses to run code in it: it asks for {text}, and a weight file may hold tensors only")
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
    raise TypeError(f"{name} called as a function")


def _storage(description: object) -> Storage:
    """A storage from torch's persistent id: "storage", type, key, device, items, and in old files a view into it."""
    tag, kind, key, _, num_items, *rest = _as(tuple, description)
    key, kind = _as(str, key), _as(Name, kind).text
    if tag != "storage" or kind not in _DTYPES:
        raise TypeError(f"{kind} where a storage is due")
    view = rest[0] if rest else None
    offset, num_viewed = (0, num_items) if view is None else _as(tuple, view)[1:3]
    if _count(offset) + _count(num_viewed) > _count(num_items):
        raise ValueError(f"storage {key} has a view beyond its {num_items} numbers")
    return Storage(np.dtype(_DTYPES[kind]), key, num_items, offset)


def _tensor(storage: object, offset: object, shape: object, strides: object) -> Tensor:
    """A tensor whose every number is sure to lie inside its storage."""
    storage = _as(Storage, storage)
    shape, strides = tuple(map(_count, _as(tuple, shape))), tuple(map(_count, _as(tuple, strides)))
    if len(shape) != len(strides) or len(shape) > 8:
        raise ValueError(f"a tensor has the shape {shape[:9]} and the strides {strides[:9]}")
    num_items = prod(shape)
    if num_items and num_items != 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)):
        raise ValueError(f"a tensor of shape {shape} is stored with gaps or overlaps (strides {strides})")
    offset = storage.offset + _count(offset)
    if offset + num_items > storage.num_items:
        raise ValueError(f"a tensor of shape {shape} lies beyond the {storage.num_items} numbers of its storage")
    return Tensor(storage, offset, shape, strides)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise TypeError(f"{type(value).__name__} where a count is due")
    return value

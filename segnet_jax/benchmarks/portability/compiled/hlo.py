"""Parse the text of an optimized XLA program: its kernels in order, with shapes and bytes."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

_BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2},
    **{"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8},
}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_COMMENT = re.compile(r"/\*.*?\*/")
NO_KERNEL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all", "partition-id"),
    *("add-dependency", "domain", "async-update", "async-done", "copy-done"),
}
"""Operations that run nothing on the device."""
_PARTIAL = {"slice", "dynamic-slice", "gather"}


@dataclass(frozen=True)
class Instruction:
    """An instruction of a computation.

    Attributes:
      name: name, unique in the program.
      shape: shape of the result, as text.
      operation: operation, such as "fusion".
      operands: names of the operands.
      operand_shapes: shapes of the operands, as text.
      attributes: the rest of the line.
      count: number of executions in one call of the program.
      fused: name stacks of the operations in a fusion.
      bytes_read: bytes read from the operands; of one that is only sliced or gathered, the bytes of the results.
    """

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    operand_shapes: tuple[str, ...]
    attributes: str
    count: int = 1
    fused: frozenset[str] = frozenset()
    bytes_read: int = 0

    @property
    def op_name(self) -> str:
        """The name stack of the JAX operation that the instruction comes from, or ""."""
        return self.attribute(_OP_NAME)

    @property
    def custom_call(self) -> str:
        """The target of a custom call, or ""."""
        return self.attribute(r'custom_call_target="([^"]*)"')

    @property
    def bytes_written(self) -> int:
        """Bytes of the result."""
        return num_bytes(self.shape)

    def attribute(self, pattern: str | re.Pattern[str]) -> str:
        """Return the first group of a pattern's match in the attributes, or ""."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else ""


def num_bytes(shape: str) -> int:
    """Return the bytes of all arrays of a shape or tuple of shapes; unknown dtypes, such as tokens, count as 0."""
    return sum(_BYTES.get(dtype, 0) * num_elements(dims) for dtype, dims in _ARRAY.findall(shape))


def num_elements(dims: str) -> int:
    """Return the number of elements of an array with dimensions such as "16,360,480,64"."""
    return math.prod(map(int, filter(None, dims.split(","))))


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return (dtype, dimensions) of each array of a shape."""
    return [(dtype, tuple(map(int, filter(None, dims.split(","))))) for dtype, dims in _ARRAY.findall(shape)]


def kernels(text: str) -> list[Instruction]:
    """Return the instructions of a program that run on the device, in order.

    A fusion is one kernel. The body of a loop is listed once, with its trip count. All branches of a conditional are
    listed.

    Raises:
      ValueError: If the text is not a program, or the trip count of a loop is unknown.
    """
    computations, entry = _computations(text)
    if not entry:
        raise ValueError("no entry computation in the text of the program")
    return list(_kernels(computations, entry, 1))


def _kernels(computations: dict[str, list[str]], name: str, count: int) -> Iterator[Instruction]:
    parsed = [match for line in computations[name] if (match := _INSTRUCTION.match(line))]
    shapes = {match[1]: match[2] for match in parsed}
    for match in parsed:
        operation, (operands, attributes) = match[3], _split(match[4])
        if operation in NO_KERNEL:
            continue
        if operation in ("while", "call", "conditional"):
            times = count * _trip_count(attributes) if operation == "while" else count
            for inner in _called(operation, attributes):
                yield from _kernels(computations, inner, times)
            continue
        known = tuple(each for each in _OPERAND.findall(operands) if each in shapes)
        called = re.search(r"calls=%?([\w.\-]+)", attributes)
        inner = computations.get(called[1], []) if called else []
        known_shapes = tuple(shapes[each] for each in known)
        read = dict(zip(known, known_shapes, strict=True))
        if operation in _PARTIAL:
            read[known[0]] = match[2]
        partial = _partly_read(inner)
        num_read = sum(min(num_bytes(shape), partial.get(known.index(name), math.inf)) for name, shape in read.items())
        fused = frozenset(_OP_NAME.findall("\n".join(inner)))
        yield Instruction(match[1], match[2], operation, known, known_shapes, attributes, count, fused, num_read)


def _partly_read(lines: list[str]) -> dict[int, int]:
    """Return the bytes read from each parameter, by index, that a fused computation only slices or gathers."""
    parsed = [match for line in lines if (match := _INSTRUCTION.match(line))]
    parameters = {match[1]: int(_split(match[4])[0]) for match in parsed if match[3] == "parameter"}
    read, whole = dict.fromkeys(parameters.values(), 0), set()
    for match in parsed:
        for place, name in enumerate(_OPERAND.findall(_split(match[4])[0])):
            if name in parameters and match[3] in _PARTIAL and place == 0:
                read[parameters[name]] += num_bytes(match[2])
            elif name in parameters:
                whole.add(parameters[name])
    return {index: size for index, size in read.items() if index not in whole}


def _called(operation: str, attributes: str) -> list[str]:
    if operation == "while":
        return re.findall(r"body=%?([\w.\-]+)", attributes)
    if operation == "call":
        return re.findall(r"to_apply=%?([\w.\-]+)", attributes)
    listed = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    return _OPERAND.findall(listed[1]) if listed else re.findall(r"_computation=%([\w.\-]+)", attributes)


def _trip_count(attributes: str) -> int:
    match = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', attributes)
    if not match:
        raise ValueError("a while loop of the compiled program has no known_trip_count")
    return int(match[1])


def _split(rest: str) -> tuple[str, str]:
    """Split the text after an operation's opening parenthesis into operands and attributes."""
    depth = 1
    for i, letter in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if not depth:
            return rest[:i], rest[i + 1 :]
    return rest, ""


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the lines of each computation, and the name of the entry computation."""
    found, entry, current = {}, "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = found.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(_COMMENT.sub("", line) if "/*" in line else line)
    return found, entry

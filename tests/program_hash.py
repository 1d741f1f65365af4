"""Hash what a lowered program computes, independent of names, locations and the order of arguments.

The text of a StableHLO module changes when a Python function, a module of the network or a key of the state is renamed:
private functions are named after Python functions, and arguments are sorted by name. So the program is read into one
graph of operations, with functions inlined, and each value is hashed by the operation that produces it, its attributes
and its operands. Operations computed twice, or never used, do not count.
"""

import hashlib
import re
from collections import Counter

from jax.interpreters import mlir
from jaxlib.mlir import ir

NAMES = {"sym_name", "sym_visibility", "callee", "arg_attrs", "res_attrs", "channel_handle", "function_type"}
"""Attributes that name or number something, or that are read elsewhere."""

BY_VALUE = {"stablehlo.optimization_barrier", "stablehlo.all_reduce"}
"""Operations that treat each operand independently, so that their order is irrelevant."""


def program_hash(text: str) -> tuple[str, dict[str, int]]:
    """Return the hash of a module's text, and the number of operations of each kind that it runs.

    Args:
      text: a module in StableHLO with a function `main`.
    """
    with mlir.make_ir_context():
        module = ir.Module.parse(text)
        functions = {_name(op): op for op in module.body.operations if op.operation.name == "func.func"}
        graph = _Graph(functions)
        outputs = graph.read_main()
    colors = graph.colors(outputs)
    return _digest(sorted(colors[value] for value in outputs)), dict(sorted(graph.kinds.items()))


def _name(function) -> str:
    return ir.StringAttr(function.attributes["sym_name"]).value


def _digest(*parts) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


class _Graph:
    """The values of a program, operands before their users.

    Attributes:
      labels: description of the operation that produces each value.
      operands: indices of the operands of each value.
      kinds: number of operations of each kind.
    """

    def __init__(self, functions):
        self.labels: list[str] = []
        self.operands: list[tuple[int, ...]] = []
        self.kinds: Counter[str] = Counter()
        self._functions = functions

    def _add(self, label: str, operands=()) -> int:
        self.labels.append(label)
        self.operands.append(tuple(operands))
        return len(self.labels) - 1

    def read_main(self) -> list[int]:
        """Read `main` and the functions it calls; return its outputs."""
        block = self._functions["main"].regions[0].blocks[0]
        arguments = [self._add(f"argument {value.type}") for value in block.arguments]
        return self._block(block, arguments, {})

    def colors(self, outputs: list[int]) -> list[str]:
        """Return a hash of each value; arguments of the same type are distinguished by their uses."""
        forward = self._forward(self.labels)
        users: list[set[str]] = [set() for _ in self.labels]
        for value in outputs:
            users[value].add("output")
        backward = list(forward)
        for value in reversed(range(len(self.labels))):
            backward[value] = _digest(forward[value], sorted(users[value]))
            if users[value]:  # else it is never used
                for place, operand in enumerate(self.operands[value]):
                    users[operand].add(_digest(backward[value], place))
        return self._forward(
            [
                color if label.startswith("argument ") else label
                for label, color in zip(self.labels, backward, strict=True)
            ]
        )

    def _forward(self, labels: list[str]) -> list[str]:
        colors: list[str] = []
        for label, operands in zip(labels, self.operands, strict=True):
            colors.append(_digest(label, [colors[operand] for operand in operands]))
        return colors

    def _block(self, block, arguments: list[int], outer: dict) -> list[int]:
        """Read a block's operations; return the operands of its last one."""
        values = outer | dict(zip(block.arguments, arguments, strict=True))
        for op in block.operations:
            operation = op.operation
            operands = [values[operand] for operand in operation.operands]
            if operation.name in ("func.return", "stablehlo.return", "sdy.return"):
                return operands
            self.kinds[operation.name] += 1
            values.update(zip(operation.results, self._results(operation, operands, values), strict=True))
        raise AssertionError("a block without a last operation")

    def _results(self, operation, operands: list[int], values: dict) -> list[int]:
        name, types = operation.name, [str(result.type) for result in operation.results]
        if name == "func.call":
            callee = self._functions[ir.FlatSymbolRefAttr(operation.attributes["callee"]).value]
            return self._block(callee.regions[0].blocks[0], operands, {})
        if name == "sdy.manual_computation":
            return self._manual_computation(operation, operands, values)
        if name == "stablehlo.while":
            return self._while(operation, operands, values)
        label = f"{name} {_attributes(operation)}"
        branches = [self._region(region, operands, values, name) for region in operation.regions]
        if name in ("stablehlo.case", "stablehlo.if"):
            return [
                self._add(f"{label} {kind}", [*operands, *each]) for kind, *each in zip(types, *branches, strict=True)
            ]
        inner = [value for branch in branches for value in branch]
        if name in BY_VALUE:
            return [self._add(f"{label} {kind}", [value, *inner]) for kind, value in zip(types, operands, strict=True)]
        whole = self._add(f"{label} {types}", [*operands, *inner])
        return [whole] if len(types) == 1 else [self._add(f"result {place}", [whole]) for place in range(len(types))]

    def _region(self, region, operands: list[int], values: dict, name: str) -> list[int]:
        block = region.blocks[0]
        arguments = [
            self._add(f"inner {name} {place} {value.type}", operands) for place, value in enumerate(block.arguments)
        ]
        return self._block(block, arguments, values)

    def _while(self, operation, operands: list[int], values: dict) -> list[int]:
        carried = [self._add("carried", [operand]) for operand in operands]
        condition, body = (self._block(region.blocks[0], carried, values) for region in operation.regions)
        return [
            self._add("after the loop", [before, after, *condition])
            for before, after in zip(operands, body, strict=True)
        ]

    def _manual_computation(self, operation, operands: list[int], values: dict) -> list[int]:
        places = {
            name: re.findall(r"<@[^>]*>", str(operation.attributes[name])) for name in ("in_shardings", "out_shardings")
        }
        block = operation.regions[0].blocks[0]
        arguments = [
            self._add(f"a device's {where} {argument.type}", [operand])
            for where, argument, operand in zip(places["in_shardings"], block.arguments, operands, strict=True)
        ]
        returned = self._block(block, arguments, values)
        return [
            self._add(f"all devices' {where}", [value])
            for where, value in zip(places["out_shardings"], returned, strict=True)
        ]


def _attributes(operation) -> str:
    attributes = operation.attributes
    return " ".join(f"{name}={attributes[name]}" for name in sorted(attributes) if name not in NAMES)

"""The graph of an ONNX file: its nodes and constant tensors.

Field numbers are those of ONNX's `onnx.proto`. Nothing is executed; only operations on constants that exporters leave
between a weight and its use are folded.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segnet_jax.weights.containers.protobuf import floats, message_classes, parse, text
from segnet_jax.weights.containers.stored_tensors import StoredTensor

_MODEL = message_classes(
    "onnx",
    {
        "Model": {"graph": (7, "Graph")},
        "Graph": {"node": (1, "repeated Node"), "initializer": (5, "repeated Tensor"), "input": (11, "repeated Value")},
        "Node": {
            "input": (1, "repeated bytes"),
            "output": (2, "repeated bytes"),
            "name": (3, "bytes"),
            "op_type": (4, "bytes"),
            "attribute": (5, "repeated Attribute"),
            "domain": (7, "bytes"),
        },
        "Attribute": {
            "name": (1, "bytes"),
            "f": (2, "float"),
            "i": (3, "int64"),
            "s": (4, "bytes"),
            "t": (5, "Tensor"),
            "floats": (7, "repeated float"),
            "ints": (8, "repeated int64"),
        },
        "Value": {"name": (1, "bytes")},
        "Tensor": {
            "dims": (1, "repeated int64"),
            "data_type": (2, "int32"),
            "float_data": (4, "repeated float"),
            "int64_data": (7, "repeated int64"),
            "name": (8, "bytes"),
            "raw_data": (9, "bytes"),
            "double_data": (10, "repeated double"),
            "external_data": (13, "repeated bytes"),
            "data_location": (14, "int32"),
        },
    },
)["Model"]
_DTYPES = {1: "<f4", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}  # TensorProto.DataType
_TYPED_DATA = {1: "float_data", 7: "int64_data", 11: "double_data"}  # alternatives to `raw_data`
_MAX_AXES = 8


@dataclass(frozen=True)
class Node:
    """An operation; `attributes` maps names to values."""

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.op} {self.name or self.output!r}"


@dataclass(frozen=True)
class Graph:
    """The graph of a network.

    Attributes:
      inputs: names of the graph's inputs.
      constants: known tensors by name.
      consumers: name of a tensor -> the nodes that use it.
    """

    inputs: tuple[str, ...]
    constants: dict[str, StoredTensor] = field(default_factory=dict)
    consumers: dict[str, list[Node]] = field(default_factory=dict)


def read_graph(path: Path) -> Graph:
    """Read an ONNX file without converting its weights.

    Raises:
      ValueError: If the file is damaged or stores its weights in another file.
    """
    model = parse(path, _MODEL).graph
    constants = {text(tensor.name): _stored(tensor) for tensor in model.initializer}
    names = (text(value.name) for value in model.input)
    graph = Graph(tuple(name for name in names if name not in constants), constants)
    for node in map(_node, model.node):
        if (constant := _fold(node, constants)) is not None:
            constants[node.output] = constant
            continue
        for name in set(node.inputs) - {""}:
            graph.consumers.setdefault(name, []).append(node)
    return graph


def _node(proto) -> Node:
    domain, op = text(proto.domain), text(proto.op_type)
    return Node(
        op=op if domain in ("", "ai.onnx") else f"{domain}.{op}",
        name=text(proto.name),
        inputs=tuple(map(text, proto.input)),
        output=text(proto.output[0]) if proto.output else "",
        attributes={text(each.name): _value(each) for each in proto.attribute},
    )


def _value(attribute) -> Any:
    """Return the value of an attribute of any type; lists become tuples."""
    for scalar in ("f", "i", "t"):
        if attribute.HasField(scalar):
            return _stored(attribute.t) if scalar == "t" else getattr(attribute, scalar)
    if attribute.HasField("s"):
        return text(attribute.s)
    return tuple(attribute.ints) or tuple(attribute.floats)


def _stored(tensor) -> StoredTensor:
    """Convert a TensorProto, after checking that the size of its data matches its shape."""
    name, shape, kind = text(tensor.name), tuple(tensor.dims), tensor.data_type
    if tensor.data_location or tensor.external_data:
        raise ValueError(
            f"stores {name or 'a tensor'} in another file; save it as one file: "
            "onnx.save(model, path, save_as_external_data=False)"
        )
    if len(shape) > _MAX_AXES or any(size < 0 for size in shape):
        raise ValueError(f"tensor {name} has the invalid shape {shape[: _MAX_AXES + 1]}")
    if kind not in _DTYPES:
        return StoredTensor(shape, partial(_refuse, f"tensor {name} is of ONNX type {kind}, which is not supported"))
    if not tensor.raw_data:
        if kind not in _TYPED_DATA:
            return StoredTensor(shape, partial(_refuse, f"tensor {name} has no raw_data"))
        numbers = getattr(tensor, _TYPED_DATA[kind])
        return StoredTensor(shape, partial(floats, numbers, shape, np.dtype(_DTYPES[kind])))
    if len(tensor.raw_data) != (needed := math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize):
        raise ValueError(f"tensor {name} of shape {shape} has {len(tensor.raw_data)} bytes instead of {needed}")
    return StoredTensor(shape, lambda: np.frombuffer(tensor.raw_data, _DTYPES[kind]).reshape(shape))


def _refuse(fault: str) -> np.ndarray:
    raise ValueError(fault)


def _fold(node: Node, constants: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """Return the output of a node, or None if it cannot be folded."""
    if node.op == "Constant":
        return _constant(node)
    operands = [constants.get(name) for name in node.inputs]
    if not operands or None in operands:
        return None
    tensor = operands[0]
    try:
        change = _change(node, operands[1:])
        shape = change(np.broadcast_to(np.float32(0), tensor.shape)).shape  # a view: a huge shape takes no memory
    except (ValueError, TypeError, OverflowError):  # an operation that is not folded, or an invalid node
        return None
    return StoredTensor(shape, lambda: change(tensor.read()))


def _constant(node: Node) -> StoredTensor | None:
    """Return the tensor of a Constant node, or None for strings and sparse tensors."""
    for name, value in node.attributes.items():
        if isinstance(value, StoredTensor):
            return value
        if name in ("value_float", "value_floats", "value_int", "value_ints"):
            array = np.array(value, np.float32 if "float" in name else np.int64)
            return StoredTensor(array.shape, lambda array=array: array)
    return None


def _change(node: Node, others: list[StoredTensor]) -> Callable[[np.ndarray], np.ndarray]:
    """Return the operation of a node that only rearranges its first operand.

    Raises:
      ValueError: If the node does anything else.
    """
    match node.op:
        case "Identity" | "Cast":  # all weights are converted to float32 when read
            return lambda array: array
        case "Transpose":
            return lambda array: np.transpose(array, node.attributes.get("perm") or None)
        case "Reshape" if len(others) == 1:
            shape = integers(others[0])
            return lambda array: np.reshape(array, shape)
        case "Unsqueeze" | "Squeeze":
            axes = integers(others[0]) if others else node.attributes.get("axes")
            return lambda array: (np.expand_dims if node.op == "Unsqueeze" else np.squeeze)(array, axes)
    raise ValueError(f"{node} is not folded")


def integers(tensor: StoredTensor) -> tuple[int, ...]:
    """Return a short vector of integers, such as a shape or axes.

    Raises:
      ValueError: If the vector is too long or does not contain integers.
    """
    if math.prod(tensor.shape) > _MAX_AXES:
        raise ValueError(f"a shape or list of axes has {math.prod(tensor.shape)} numbers, more than {_MAX_AXES}")
    array = tensor.read()
    if array.dtype.kind != "i":
        raise ValueError(f"a shape or list of axes must be integers, got {array.dtype}")
    return tuple(array.ravel().tolist())

"""Count convolutions and matrix products in a traced program (its jaxpr), with the same result on every machine.

For `lax.platform_dependent`, the default branch is counted, including the multiplications that Winograd saves on a CPU.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


@dataclass(frozen=True)
class Product:
    """A convolution or a matrix product of a program.

    Attributes:
      multiply_adds: number of multiply-adds, including those on the padding of a convolution, but not those on the
        zeros between the rows of a dilated input.
      inputs: number of elements of the left operand, the image of a forward convolution.
      outputs: number of elements of the result.
      count: number of executions.
    """

    multiply_adds: float
    inputs: int
    outputs: int
    count: int = 1


def products_of(function: Callable, *args: Any) -> list[Product]:
    """Trace a function without running it, and return its convolutions and matrix products in order.

    Args:
      function: the function to trace; operations that no result needs are not counted.
      *args: arguments of the function, or their shapes (`jax.ShapeDtypeStruct`).

    Raises:
      ValueError: If an operation is in a `while` loop, whose number of iterations is unknown.
    """
    return list(_products(jax.make_jaxpr(function)(*args).jaxpr, 1))


def flop(products: list[Product]) -> float:
    """Return the floating-point operations of convolutions and matrix products, two per multiply-add."""
    return 2 * sum(each.multiply_adds * each.count for each in products)


def _products(jaxpr: Jaxpr, count: int) -> Iterator[Product]:
    by_platform: dict[Any, int] = {}  # the default branch of each platform-dependent choice
    for equation in _needed(jaxpr):
        name, parameters = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            yield _convolution(equation, count)
        elif name == "dot_general":
            yield _matrix_product(equation, count)
        elif name == "platform_index":
            by_platform[equation.outvars[0]] = list(parameters["platforms"]).index(None)
        elif name == "cond":
            branches = [list(_products(branch.jaxpr, count)) for branch in parameters["branches"]]
            index = equation.invars[0]
            chosen = None if isinstance(index, Literal) else by_platform.get(index)
            yield from max(branches, key=flop) if chosen is None else branches[chosen]
        elif name == "scan":
            yield from _products(parameters["jaxpr"].jaxpr, count * parameters["length"])
        elif name == "while":
            if any(True for inner in _inner(parameters) for _ in _products(inner, count)):
                raise ValueError("cannot count a convolution or matrix product in a while loop: its length is unknown")
        else:
            for inner in _inner(parameters):
                yield from _products(inner, count)


def _needed(jaxpr: Jaxpr) -> list[Any]:
    """Return the equations that a result needs, in order."""
    needed = {each for each in jaxpr.outvars if not isinstance(each, Literal)}
    chosen = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not needed.isdisjoint(equation.outvars):
            needed |= {each for each in equation.invars if not isinstance(each, Literal)}
            chosen.append(equation)
    return chosen[::-1]


def _inner(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each


def _convolution(equation: Any, count: int) -> Product:
    left, right = (each.aval for each in equation.invars)
    out, form = equation.outvars[0].aval, equation.params
    _, inputs_axis, *spatial_axes = form["dimension_numbers"].rhs_spec
    kernel = right.shape[inputs_axis] * math.prod(right.shape[axis] for axis in spatial_axes)
    return Product(out.size * kernel / math.prod(form["lhs_dilation"]), left.size, out.size, count)


def _matrix_product(equation: Any, count: int) -> Product:
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    (contracted, _), _ = equation.params["dimension_numbers"]
    return Product(out.size * math.prod(left.shape[axis] for axis in contracted), left.size, out.size, count)

"""Measure the time of each 3x3 convolution of the network, and of the rest of a training step."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peer_network
import torch
from machine import Machine
from problem import NUM_CLASSES, Problem
from side_by_side import Checks, Times, take_turns
from torch_segnet import TorchSegNet

from segnet_jax.nn.convolution import convolve_padded
from segnet_jax.training.precision import DTYPES

PASSES = ("forward", "gradient by image", "gradient by kernel")
EXACT = 1e-4  # of the length of PyTorch's; Winograd's way is off by 1e-5
ROUGH = 3e-2  # in 16 bits and TF32


@dataclass(frozen=True)
class Layer:
    """The size of a convolution, from [H,W,inputs] to [H,W,outputs]."""

    height: int
    width: int
    inputs: int
    outputs: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}, {self.inputs} to {self.outputs}"


@dataclass(frozen=True)
class Part:
    """The time of a part of a training step, in milliseconds.

    Attributes:
      name: layer name or description.
      what: name of the pass.
      count: number of occurrences in a step.
      ours: time of one occurrence.
      theirs: PyTorch's time of one occurrence.
    """

    name: str
    what: str
    count: int
    ours: float
    theirs: float

    def as_json(self) -> dict[str, Any]:
        """Return all numbers, with units in their keys."""
        return {
            "name": self.name,
            "pass": self.what,
            "in_a_step": self.count,
            "ours_ms": self.ours,
            "pytorch_ms": self.theirs,
            "ours_over_pytorch": self.ours / self.theirs,
        }

    def row(self) -> tuple[str, ...]:
        """Return a table row as described by `HEADINGS`."""
        numbers = (self.ours, self.theirs, self.count * self.ours, self.count * self.theirs)
        ours, theirs, *in_a_step = (f"{number:,.2f}" for number in numbers)
        return self.name, self.what, str(self.count), ours, theirs, f"{self.ours / self.theirs:.3f}", *in_a_step


HEADINGS = ("", "pass", "in a step", "ours, ms", "PyTorch, ms", "ours / it", "ours, ms a step", "PyTorch, ms a step")
"""Column headings of `Part.row`."""


def compare(problem: Problem, machine: Machine, *, rounds: int, steps: int) -> tuple[list[Part], list[Part], Checks]:
    """Compare outputs, then time each convolution's passes and the whole training step.

    Returns:
      The parts of each layer; the sums of all, the whole step, and the rest of it; and the checks made.

    Raises:
      UnequalError: If the sides do not compute the same.
    """
    training, _, checks = peer_network.equal_sides(problem, machine)
    step = _part("whole training step", "", 1, take_turns(training, rounds=rounds, steps=steps))
    del training
    batch_size, height, width, _ = problem.image.shape
    parts = []
    for layer, count in layers_of(height, width, problem.config.width).items():
        for what, sides in equal_layer(layer, batch_size, machine, checks):
            if what == "gradient by image" and layer.inputs == 3:
                continue  # nothing needs it
            times = take_turns(sides, rounds=rounds, steps=steps)
            parts.append(_part(str(layer), what, count, times))
    sums = [_sum("all convolutions", what, [part for part in parts if part.what == what]) for what in PASSES]
    everything = _sum("all convolutions", "", parts)
    rest = Part("all but convolutions", "", 1, step.ours - everything.ours, step.theirs - everything.theirs)
    return parts, [*sums, everything, step, rest], checks


def layers_of(height: int, width: int, factor: float) -> Counter[Layer]:
    """Return the distinct sizes of the PyTorch network's convolutions, and the number of layers with each."""
    with torch.device("meta"):
        network, image = TorchSegNet(NUM_CLASSES, width=factor), torch.empty(1, 3, height, width)
    layers = Counter()

    def count(_module, inputs, output):
        layers[Layer(*output.shape[2:], inputs[0].shape[1], output.shape[1])] += 1

    for convolution in network.convolutions.values():
        convolution.register_forward_hook(count)
    network.eval()(image)
    return layers


def equal_layer(
    layer: Layer, batch_size: int, machine: Machine, checks: Checks
) -> Iterator[tuple[str, dict[str, peer_network.Run]]]:
    """Yield each pass with its sides, after comparing their outputs.

    Raises:
      UnequalError: If the sides do not compute the same.
    """
    rng = np.random.default_rng(0)
    shape = batch_size, layer.height, layer.width
    x = rng.normal(size=(*shape, layer.inputs)).astype(np.float32)
    kernel = rng.normal(0, 0.05, (3, 3, layer.inputs, layer.outputs)).astype(np.float32)
    gradient = rng.normal(size=(*shape, layer.outputs)).astype(np.float32)
    ours = [jnp.asarray(array, DTYPES[machine.precision]) for array in (x, kernel, gradient)]
    theirs = [
        torch.from_numpy(array)
        .permute(order)
        .to(machine.torch_device, machine.dtype, memory_format=torch.channels_last)
        for array, order in ((x, (0, 3, 1, 2)), (kernel, (3, 2, 0, 1)), (gradient, (0, 3, 1, 2)))
    ]
    back = {"forward": (0, 2, 3, 1), "gradient by image": (0, 2, 3, 1), "gradient by kernel": (2, 3, 1, 0)}
    for what, (our, their) in _PASSES.items():
        our_result = np.asarray(our(*ours), np.float32)
        their_result = their(*theirs).permute(back[what]).float().cpu().numpy()
        checks.close(f"{layer}: {what}", our_result, their_result, EXACT if machine.is_exact else ROUGH)
        yield what, {"ours": machine.ours(our, *ours), "PyTorch": machine.theirs(their, *theirs)}


def _our_image_gradient(x, kernel, gradient):
    return jax.vjp(lambda x: convolve_padded(x, kernel), x)[1](gradient)[0]


def _our_kernel_gradient(x, kernel, gradient):
    return jax.vjp(lambda kernel: convolve_padded(x, kernel), kernel)[1](gradient)[0]


def _their_gradient(which: int):
    mask = [place == which for place in range(3)]

    def compute(x, kernel, gradient):
        settings = None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask  # stride, padding, dilation, groups
        return torch.ops.aten.convolution_backward(gradient, x, kernel, *settings)[which]

    return compute


_PASSES = {
    "forward": (
        jax.jit(lambda x, kernel, gradient: convolve_padded(x, kernel)),
        lambda x, kernel, gradient: torch.nn.functional.conv2d(x, kernel, padding=1),
    ),
    "gradient by image": (jax.jit(_our_image_gradient), _their_gradient(0)),
    "gradient by kernel": (jax.jit(_our_kernel_gradient), _their_gradient(1)),
}


def _part(name: str, what: str, count: int, times: dict[str, Times]) -> Part:
    ours, theirs = (side.ms for side in times.values())
    return Part(name, what, count, ours, theirs)


def _sum(name: str, what: str, parts: list[Part]) -> Part:
    ours, theirs = (sum(part.count * getattr(part, side) for part in parts) for side in ("ours", "theirs"))
    return Part(name, what, 1, ours, theirs)

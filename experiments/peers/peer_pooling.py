"""Compare max-pooling and unpooling, forward and backward, at the size of the first stage."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from machine import Machine
from side_by_side import Checks, Comparison, take_turns
from torch.nn import functional

from segnet_jax.nn.pooling import max_pool_with_code, unpool
from segnet_jax.training.precision import DTYPES

LAYOUTS = {"PyTorch, NCHW": torch.contiguous_format, "PyTorch, channels-last": torch.channels_last}


def compare(shape: tuple[int, int, int, int], machine: Machine, *, rounds: int, steps: int) -> Comparison:
    """Compare values and gradients bit for bit, then time both sides alternately.

    Args:
      shape: shape [B,H,W,C] of the input.
      machine: device to compute on.
      rounds: turns of each side.
      steps: steps per turn.

    Raises:
      UnequalError: If the sides do not compute the same.
    """
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=shape), 0).astype(np.float32)  # as after a ReLU: many windows with ties
    gradient = rng.normal(size=shape).astype(np.float32)
    arrays = [jnp.asarray(array, DTYPES[machine.precision]) for array in (x, gradient)]
    sides, checks = {"ours": machine.ours(pool_and_back, *arrays)}, Checks()
    values = [np.asarray(array, np.float32) for array in pool_and_back(*arrays)]
    for name, layout in LAYOUTS.items():
        tensors = [
            torch.from_numpy(array).permute(0, 3, 1, 2).to(machine.torch_device, machine.dtype, memory_format=layout)
            for array in (x, gradient)
        ]
        peer = TorchPooling(machine)
        expected = [tensor.detach().permute(0, 2, 3, 1).float().cpu().numpy() for tensor in peer(*tensors)]
        for what, our, their in zip(("values", "gradient"), values, expected, strict=True):
            checks.close(f"{what}, {name}", our, their, tolerance=0.0)
        sides[name] = machine.theirs(peer, *tensors)
    what = f"pool, unpool, and back, {'x'.join(map(str, shape))}"
    return Comparison(what, shape[0], take_turns(sides, rounds=rounds, steps=steps), checks)


@jax.jit
def pool_and_back(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the unpooled maxima [B,H,W,C] and the gradient with respect to x."""

    def through(x):
        maxima, code = max_pool_with_code(x)
        return unpool(maxima, code, *x.shape[1:3])

    y, pull_back = jax.vjp(through, x)
    return y, *pull_back(gradient)


class TorchPooling:
    """The same computation in PyTorch, on [B,C,H,W] in any memory layout."""

    def __init__(self, machine: Machine):
        self._through = machine.compile(self._through)

    def __call__(self, x: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the unpooled maxima and the gradient with respect to x."""
        x = x.detach().requires_grad_()
        y = self._through(x)
        return y, *torch.autograd.grad(y, x, gradient)

    @staticmethod
    def _through(x: torch.Tensor) -> torch.Tensor:
        maxima, index = functional.max_pool2d(x, 2, return_indices=True)
        return functional.max_unpool2d(maxima, index, 2, output_size=x.shape[2:])

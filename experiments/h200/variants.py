"""The training step with one of its optimizations removed, to measure the effect of each.

python experiments/h200/variants.py NAME [benchmark flags] --json FILE

NAME is a variant below; "ours" removes nothing. Each replaces our implementation by the plain one of Flax and JAX
and measures as `python -m segnet_jax.benchmark train` does.
"""

import contextlib
import sys
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
from flax import linen as nn

from segnet_jax import benchmark
from segnet_jax.nn import convolution
from segnet_jax.nn.pooling import _larger, _to_even
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import UserError


class PlainBatchNormReLU(nn.Module):
    """Flax's BatchNorm, then ReLU: JAX chooses the residuals of the backward pass."""

    momentum: float
    epsilon: float
    axis_name: str | None = None
    relu: bool = True
    first_bias: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Apply the layer, with the interface of `BatchNormReLU`."""
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            dtype=x.dtype,
            bias_init=nn.initializers.constant(self.first_bias),
        )
        nn.share_scope(self, norm)  # the optimizer expects the parameters at the paths of our layer
        return nn.relu(norm(x)) if self.relu else norm(x)


class RecomputedBatchNormReLU(PlainBatchNormReLU):
    """A `PlainBatchNormReLU` under `jax.checkpoint`, which keeps only x and recomputes the rest."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Apply the layer, with the interface of `BatchNormReLU`."""
        recomputed = nn.remat(PlainBatchNormReLU, static_argnums=(2,))
        layer = recomputed(self.momentum, self.epsilon, self.axis_name, self.relu, self.first_bias)
        nn.share_scope(self, layer)
        return layer(x, train)


def pool_by_autodiff(x: jax.Array, pooling: str = "floor") -> tuple[jax.Array, jax.Array]:
    """Max-pool and return codes; JAX differentiates it and keeps the comparisons of every map."""
    x = _to_even(x, pooling)
    top, right_of_top = _larger(x[:, ::2, ::2], x[:, ::2, 1::2])
    bottom, right_of_bottom = _larger(x[:, 1::2, ::2], x[:, 1::2, 1::2])
    maximum, is_bottom = _larger(top, bottom)
    code = jnp.where(is_bottom, 2 + right_of_bottom.astype(jnp.uint8), right_of_top.astype(jnp.uint8))
    return maximum, code


def unpool_by_autodiff(x: jax.Array, code: jax.Array, height: int, width: int) -> jax.Array:
    """Unpool; JAX differentiates it and keeps a comparison of every cell."""
    batch, h, w, channels = x.shape
    cell = jnp.array([[0, 1], [2, 3]], jnp.uint8)[None, None, :, None, :, None]
    x, code = (array[:, :, None, :, None, :] for array in (x, code))
    spread = jnp.where(code == cell, x, jnp.zeros((), x.dtype)).reshape(batch, 2 * h, 2 * w, channels)[
        :, :height, :width
    ]
    return jnp.pad(spread, ((0, 0), (0, height - spread.shape[1]), (0, width - spread.shape[2]), (0, 0)))


Patch = tuple[str, object]
VARIANTS: dict[str, tuple[Patch, ...]] = {
    "ours": (),
    "pooling_by_autodiff": (
        ("segnet_jax.nn.segnet.max_pool_with_code", pool_by_autodiff),
        ("segnet_jax.nn.segnet.unpool", unpool_by_autodiff),
    ),
    "batch_norm_of_flax": (("segnet_jax.nn.segnet.BatchNormReLU", PlainBatchNormReLU),),
    "batch_norm_recomputed": (("segnet_jax.nn.segnet.BatchNormReLU", RecomputedBatchNormReLU),),
    "channels_not_filled_up": (("segnet_jax.nn.convolution.pad_channels", lambda *arrays: arrays),),
    # Only on a CPU; other devices use XLA's own anyway.
    "convolutions_of_xla": (
        ("segnet_jax.nn.convolution._convolve_on_cpu", convolution._convolve),
        ("segnet_jax.nn.convolution._image_gradient_on_cpu", convolution._image_gradient),
        ("segnet_jax.nn.convolution._kernel_gradient_on_cpu", convolution._kernel_gradient),
    ),
}
VARIANTS["all_plain"] = tuple(
    patch for name, patches in VARIANTS.items() if name != "batch_norm_recomputed" for patch in patches
)


@contextlib.contextmanager
def taken_out(name: str) -> Iterator[None]:
    """Replace our functions with those of a variant inside the context.

    Raises:
      UserError: If the name is unknown.
    """
    if name not in VARIANTS:
        raise UserError(f"unknown variant {name!r}; known: {', '.join(VARIANTS)}")
    with contextlib.ExitStack() as stack:
        for target, replacement in VARIANTS[name]:
            stack.enter_context(mock.patch(target, replacement))
        yield


def main() -> int:
    """Run the command."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise UserError(f"name a variant: {', '.join(VARIANTS)}")
    name = sys.argv.pop(1)
    sys.argv.insert(1, "train")
    with taken_out(name):
        return benchmark.main()


if __name__ == "__main__":
    run_command(main)

"""The dtype of activations, and loss scaling for float16.

Parameters, momentum, BatchNorm statistics and the loss are always float32.
"""

import jax
import jax.numpy as jnp
from flax import struct

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def choose_precision(precision: str, device: jax.Device) -> str:
    """Resolve "auto": float16 on Volta and Turing, bfloat16 on newer GPUs and TPUs, float32 elsewhere.

    The tensor cores of Volta and Turing support only float16; bfloat16 would be computed as float32.
    """
    if precision != "auto":
        return precision
    if device.platform == "tpu":
        return "bfloat16"
    capability = getattr(device, "compute_capability", None)  # "7.0" on NVIDIA, "gfx90a" on AMD, absent on CPU
    if device.platform == "gpu" and capability:
        is_volta_or_turing = str(capability).startswith("7.")
        return "float16" if is_volta_or_turing else "bfloat16"
    return "float32"


class LossScale(struct.PyTreeNode):
    """Dynamic loss scale for float16 training.

    It follows the rule of flax's `DynamicScale`, which cannot be used because it computes the gradient itself, so that
    gradients cannot be accumulated before unscaling.

    Attributes:
      scale: float32, factor of the loss.
      good_steps: int32, finite steps since the scale last changed.
    """

    scale: jax.Array
    good_steps: jax.Array

    GROWTH_INTERVAL = 2000  # finite steps before the scale is doubled, as in flax and PyTorch

    @classmethod
    def create(cls) -> "LossScale":
        """Return the initial scale, 65,536."""
        return cls(scale=jnp.float32(65536.0), good_steps=jnp.int32(0))

    def adjust(self, finite: jax.Array) -> "LossScale":
        """Halve the scale after non-finite gradients, double it after 2,000 finite steps."""
        grow = finite & (self.good_steps + 1 >= self.GROWTH_INTERVAL)
        grown = jnp.where(grow, jnp.minimum(self.scale * 2.0, jnp.float32(2.0**24)), self.scale)
        return LossScale(
            scale=jnp.where(finite, grown, jnp.maximum(self.scale * 0.5, jnp.float32(1.0))),
            good_steps=jnp.where(finite & ~grow, self.good_steps + 1, 0),
        )

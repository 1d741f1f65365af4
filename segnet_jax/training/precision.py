"""Which number format activations take, and the loss scaling that float16 needs.

Parameters, momentum, BatchNorm statistics and the loss are float32 always.
"""

import jax
import jax.numpy as jnp
from flax import struct

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def choose_precision(precision: str, device: jax.Device) -> str:
    """Resolves "auto": float16 on Volta and Turing, bfloat16 on newer GPUs and on TPU, float32 elsewhere.

    V100 (compute capability 7.0) has tensor cores for float16 alone; bfloat16 would be computed as float32 there.
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
    """The factor on a float16 loss that keeps small gradients from vanishing.

    flax's `DynamicScale` by the same rule takes the gradient itself, which leaves no room to add up the gradients of
    several batches before unscaling; hence this.

    Attributes:
      scale: float32, the factor.
      good_steps: int32, finite steps since the factor last changed.
    """

    scale: jax.Array
    good_steps: jax.Array

    GROWTH_INTERVAL = 2000  # finite steps before the factor is doubled, as in flax and PyTorch

    @classmethod
    def create(cls) -> "LossScale":
        """Starts at 65,536."""
        return cls(scale=jnp.float32(65536.0), good_steps=jnp.int32(0))

    def adjust(self, finite: jax.Array) -> "LossScale":
        """Halves the factor after gradients that were not finite, doubles it after 2,000 steps that were."""
        grow = finite & (self.good_steps + 1 >= self.GROWTH_INTERVAL)
        grown = jnp.where(grow, jnp.minimum(self.scale * 2.0, jnp.float32(2.0**24)), self.scale)
        return LossScale(
            scale=jnp.where(finite, grown, jnp.maximum(self.scale * 0.5, jnp.float32(1.0))),
            good_steps=jnp.where(finite & ~grow, self.good_steps + 1, 0),
        )

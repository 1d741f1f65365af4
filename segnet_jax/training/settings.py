"""What a training step and an evaluation step hold besides state and batch: one object, from the config to the step."""

from dataclasses import dataclass

import jax
import optax

from segnet_jax.nn.contract import NetworkContract
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.training.losses import Loss, cross_entropy_sum


@dataclass(frozen=True, eq=False)
class StepSettings:
    """The settings of a step; `training.build.step_settings` makes them from a config, and the steps read them.

    A new setting is a field here, a field of the config of the same name, and a line of the step that reads it.

    Attributes:
      model: the network, which keeps the contract of `nn.contract`.
      class_weights: float32 [C], of the loss.
      preprocessing: what the network expects of an image.
      optimizer: applied to the sum of the gradients over devices and batches; None where nothing is trained.
      schedule: the optimizer's learning rate, which is reported; None where nothing is trained.
      loss: what is minimized, as a sum over the labeled pixels.
      half_gradients: sum the gradients over devices in 16 bits: half the bytes on the wire, seven bits of mantissa, or
        ten in float16.
      seed: of dropout's random numbers, which an image gets by its place in the global batch, on whatever device.
      ema_decay: fraction of the old average of the variables that is kept, where the state has one.
    """

    model: NetworkContract
    class_weights: jax.Array
    preprocessing: Preprocessing
    optimizer: optax.GradientTransformation | None = None
    schedule: optax.Schedule | None = None
    loss: Loss = cross_entropy_sum
    half_gradients: bool = False
    seed: int = 0
    ema_decay: float = 0.0

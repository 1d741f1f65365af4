"""The settings of the training and evaluation steps, passed as one object from the config to the step."""

from dataclasses import dataclass

import jax
import optax

from segnet_jax.nn.network_interface import NetworkInterface
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.training.losses import CROSS_ENTROPY, Loss


@dataclass(frozen=True, eq=False)
class StepSettings:
    """The settings of a step, built from a config by `training.build_model.step_settings`.

    A new setting needs a field here, a config field of the same name, and code in the step that uses it.

    Attributes:
      model: the network (see `nn.network_interface`).
      class_weights: class weights of the loss, float32 [C].
      preprocessing: preprocessing of the network's input.
      optimizer: the optimizer; None for evaluation.
      schedule: the optimizer's learning rate, for logging; None for evaluation.
      loss: the loss, computed from sums over all devices.
      half_gradients: whether to all-reduce gradients in 16 bits, which halves the communication: in float16 if
        activations are float16, otherwise in bfloat16.
      seed: seed of dropout; each image's mask depends on its position in the global batch, not on its device.
      loop: whether several steps or batches in one call run as a loop; None for a loop except on the CPU.
      ema_decay: decay of the EMA of the variables, if the state has one.
      swa: first step and steps per epoch of stochastic weight averaging, which replaces the EMA; None without it.
      log_norms: whether to return the norms of gradients and weights as metrics.
      multi_label: whether a pixel may have several classes (see `nn.label_bits`), with a sigmoid for each.
    """

    model: NetworkInterface
    class_weights: jax.Array
    preprocessing: Preprocessing
    optimizer: optax.GradientTransformation | None = None
    schedule: optax.Schedule | None = None
    loss: Loss = CROSS_ENTROPY
    half_gradients: bool = False
    seed: int = 0
    loop: bool | None = None
    ema_decay: float = 0.0
    swa: tuple[int, int] | None = None
    log_norms: bool = False
    multi_label: bool = False

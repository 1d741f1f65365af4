"""One training step and one evaluation step, as one device sees them.

Losses are sums, added up over the devices and divided once by the number of labelled pixels of the whole global batch:
a mean of the devices' means would be wrong wherever they hold different numbers of void pixels.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from segnet_jax.metrics.confusion import confusion_matrix
from segnet_jax.nn.preprocessing import Preprocessing, normalise
from segnet_jax.training.losses import cross_entropy_sum, num_right, num_valid
from segnet_jax.training.parallel import AXIS
from segnet_jax.training.precision import all_finite
from segnet_jax.training.state import TrainState


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    class_weights: jax.Array,
    preprocessing: Preprocessing,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one optimiser step.

    Args:
      state: the same on all devices.
      batch: this device's "image" uint8 [A,B,H,W,3] and "label" uint8 [A,B,H,W]: A batches, their gradients added up.
      model: the network.
      optimizer: applied to the sum over devices and batches.
      schedule: the optimizer's learning rate, for the report.
      class_weights: float32 [C].
      preprocessing: what the network expects of an image.

    Returns:
      The next state, and scalars: "loss", "accuracy" (share of labelled pixels), "learning_rate", and "skipped", the
      number of steps so far that changed nothing; with float16 also "loss_scale". There, a step whose gradients are not
      finite changes nothing but the step number and the loss scale.
    """
    total = jnp.maximum(lax.psum(num_valid(batch["label"]), AXIS), 1)
    factor = jnp.float32(1.0) if state.loss_scale is None else state.loss_scale.scale

    def loss_fn(params, batch_stats, image, label):
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            normalise(image, preprocessing, model.dtype),
            train=True,
            mutable=["batch_stats"],
        )
        loss = cross_entropy_sum(logits, label, class_weights) / total.astype(jnp.float32)
        return factor * loss, (updated["batch_stats"], loss, num_right(logits, label))

    def add_batch(carry, one):
        grads, batch_stats, loss, right = carry
        more_grads, (batch_stats, more_loss, more_right) = jax.grad(loss_fn, has_aux=True)(
            state.params, batch_stats, one["image"], one["label"]
        )
        return jax.tree.map(jnp.add, grads, more_grads), batch_stats, loss + more_loss, right + more_right

    nothing = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats, jnp.float32(0.0), jnp.int32(0))
    grads, batch_stats, loss, right = _fold(add_batch, nothing, batch)

    grads, loss, right = lax.psum((grads, loss, right), AXIS)  # psum, not pmean: already divided by the total
    if model.sync_axis is None:
        batch_stats = lax.pmean(batch_stats, AXIS)  # synchronised statistics are equal already
    grads = jax.tree.map(lambda grad: grad / factor, grads)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    new = state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state, batch_stats=batch_stats)
    measures = {
        "loss": loss,
        "accuracy": right.astype(jnp.float32) / total.astype(jnp.float32),
        "learning_rate": jnp.asarray(schedule(state.step - state.skipped), jnp.float32),
    }
    if state.loss_scale is not None:
        finite = all_finite(grads)
        new = jax.tree.map(partial(jnp.where, finite), new, state)
        new = new.replace(
            loss_scale=state.loss_scale.adjust(finite), skipped=state.skipped + (~finite).astype(jnp.int32)
        )
        measures["loss_scale"] = new.loss_scale.scale
    return new.replace(step=state.step + 1), measures | {"skipped": new.skipped}


def _fold(function: Callable, carry, batch):
    """Applies `carry = function(carry, element)` along the batch's leading axis.

    On a GPU or TPU as a loop, so that the program stays small. On the CPU written out: there, XLA computes convolutions
    inside a loop more than ten times slower.
    """
    length = len(jax.tree.leaves(batch)[0])
    if length > 1 and jax.default_backend() != "cpu":
        return lax.scan(lambda carry, element: (function(carry, element), None), carry, batch)[0]
    for i in range(length):
        carry = function(carry, jax.tree.map(lambda array: array[i], batch))  # noqa: B023, called at once
    return carry


def eval_step(
    variables: dict,
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    class_weights: jax.Array,
    preprocessing: Preprocessing,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Scores one batch with BatchNorm's running statistics.

    Args:
      variables: the network's.
      batch: this device's "image" uint8 [B,H,W,3] and "label" uint8 [B,H,W]; VOID pixels do not count.
      model: the network.
      class_weights: float32 [C], of the loss.
      preprocessing: what the network expects of an image.

    Returns:
      Sums over all devices: "confusion" int32 [C,C] and "loss" float32, undivided; and this device's predictions, uint8
      [B,H,W].
    """
    logits = model.apply(variables, normalise(batch["image"], preprocessing, model.dtype), train=False)
    prediction = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
    sums = {
        "confusion": confusion_matrix(batch["label"], prediction, model.num_classes),
        "loss": cross_entropy_sum(logits, batch["label"], class_weights),
    }
    return lax.psum(sums, AXIS), prediction

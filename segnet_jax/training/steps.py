"""One training step and one evaluation step, as one device sees them.

Losses are sums, added up over the devices and divided once by the number of labelled pixels of the whole global batch:
a mean of the devices' means would be wrong wherever they hold different numbers of void pixels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from segnet_jax.distributed.data_parallel import AXIS
from segnet_jax.metrics.boundary import boundary_counts
from segnet_jax.metrics.confusion import confusion_matrices
from segnet_jax.nn.contract import frozen_layers
from segnet_jax.nn.preprocessing import normalize
from segnet_jax.training.ema import update_ema
from segnet_jax.training.inputs import MakeBatch
from segnet_jax.training.losses import num_right, num_valid
from segnet_jax.training.settings import StepSettings
from segnet_jax.training.small_arrays import all_finite, cut_from_one, select
from segnet_jax.training.state import TrainState, split_layers


def train_steps(
    state: TrainState, inputs: dict[str, jax.Array], store: Any, *, make_batch: MakeBatch, settings: StepSettings
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one optimiser step after another in one program.

    Args:
      state: the same on all devices.
      inputs: this device's, each array with a leading axis of K steps.
      store: data that stay on the devices.
      make_batch: (one step's inputs, store) -> the batch for `train_step`.
      settings: of `train_step`.

    Returns:
      The state after K steps, and the measures of each, [K].
    """

    def one(state, inputs):
        # The barrier keeps the step's own program the same, to the last bit, however its batch comes about.
        return train_step(state, lax.optimization_barrier(make_batch(inputs, store)), settings)

    return _scan(one, state, inputs)


def train_step(
    state: TrainState, batch: dict[str, jax.Array], settings: StepSettings
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one optimiser step.

    Args:
      state: the same on all devices.
      batch: this device's "image" uint8 [A,B,H,W,3] and "label" uint8 [A,B,H,W]: A batches, their gradients added up.
      settings: network, loss, optimizer and what else the step holds.

    Returns:
      The next state, and scalars: "loss", "accuracy" (share of labelled pixels), "learning_rate", "skipped", the number
      of steps so far that changed nothing, and "finite"; with float16 also "loss_scale". Where loss, gradients or
      BatchNorm's statistics are not finite, a float16 step changes nothing but the step number and the loss scale, and
      any other step nothing at all, nor do those after it: "finite" is then false.
    """
    model = settings.model
    # Gradients are divided by the number of labelled pixels after they are summed over devices, so that the number is
    # summed in the same message. A power of two near it, which rounds nothing, keeps them in range until then.
    pixels = batch["label"].size * lax.axis_size(AXIS)
    factor = jnp.float32(0.5 ** (pixels.bit_length() - 1))
    if state.loss_scale is not None:
        factor *= state.loss_scale.scale

    # Frozen layers are constants of the loss: no gradient of theirs is computed, nor anything that it would need.
    frozen_names = frozen_layers(model)
    frozen, trainable = split_layers(state.params, frozen_names)

    def loss_fn(params, batch_stats, image, label, keys=None):
        logits, updated = model.apply(
            {"params": params | frozen, "batch_stats": batch_stats},
            normalize(image, settings.preprocessing, model.dtype),
            train=True,
            keys=keys,
            mutable=["batch_stats"],
        )
        loss = settings.loss(logits, label, settings.class_weights)
        return factor * loss, (updated["batch_stats"], loss, num_right(logits, label))

    def add_batch(carry, one):
        grads, batch_stats, loss, right = carry
        more_grads, (batch_stats, more_loss, more_right) = jax.grad(loss_fn, has_aux=True)(
            trainable, batch_stats, **one
        )
        return (jax.tree.map(jnp.add, grads, more_grads), batch_stats, loss + more_loss, right + more_right), ()

    nothing = (jax.tree.map(jnp.zeros_like, trainable), state.batch_stats, jnp.float32(0.0), jnp.int32(0))
    if model.dropout:
        batch = batch | {"keys": _keys(settings.seed, state.step, *batch["label"].shape[:2])}
    (grads, batch_stats, loss, right), _ = _scan(add_batch, nothing, batch)

    if settings.half_gradients:
        half = jnp.bfloat16 if state.loss_scale is None else jnp.float16  # float16 needs the loss scale
        grads = jax.tree.map(lambda grad: grad.astype(half), grads)
    # Counts as float32: XLA joins messages of one type alone. Beyond 2^24 they are rounded, as in a division anyway.
    counts = (right.astype(jnp.float32), num_valid(batch["label"]).astype(jnp.float32))
    grads, loss, (right, total) = lax.psum((grads, loss, counts), AXIS)  # psum, not pmean: divided by the total below
    total = jnp.maximum(total, 1)
    if model.sync_axis is None:
        batch_stats = lax.pmean(batch_stats, AXIS)  # synchronised statistics are equal already
    batch_stats = cut_from_one(batch_stats)
    batch_stats |= split_layers(state.batch_stats, frozen_names)[0]  # to the last bit: a mean may round
    grads = cut_from_one(jax.tree.map(lambda grad: grad.astype(jnp.float32) / (factor * total), grads))

    updates, opt_state = settings.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(trainable, updates) | frozen
    new = state.replace(params=params, opt_state=opt_state, batch_stats=batch_stats)
    if state.ema is not None:
        variables = {"params": new.params, "batch_stats": batch_stats}
        mean = update_ema(state.ema, variables, settings.ema_decay, state.step - state.skipped)
        held = {name: split_layers(tree, frozen_names)[0] for name, tree in state.ema.items()}
        new = new.replace(ema={name: tree | held[name] for name, tree in mean.items()})
    new, measures = _guarded(state, new, all_finite((loss, grads, batch_stats)))
    return new, {
        "loss": loss / total,
        "accuracy": right / total,
        "learning_rate": jnp.asarray(settings.schedule(state.step - state.skipped), jnp.float32),
        **measures,
    }


def _keys(seed: int, step: jax.Array, grad_accum_steps: int, batch_size: int) -> jax.Array:
    """Random keys of this device's images in a step, [A,B], by their places in the global batch (`tf_data.Share`)."""
    batch, place = jnp.arange(grad_accum_steps)[:, None], jnp.arange(batch_size)[None]
    device = batch * lax.axis_size(AXIS) + lax.axis_index(AXIS)
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.vmap(partial(jax.random.fold_in, key)))(device * batch_size + place)


def _guarded(state: TrainState, new: TrainState, finite: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after a step, which keeps what was finite.

    In float16, a step that is not finite is skipped and the loss scale halved, which is how the scale finds its place;
    only where it cannot fall further is the training over. Otherwise it is over at once.
    """
    can_skip = jnp.bool_(False) if state.loss_scale is None else state.loss_scale.scale > 1
    goes_on = state.finite & (finite | can_skip)
    changes = goes_on & finite
    new = select(changes, new, state)
    step, skipped = state.step + _one_if(goes_on), state.skipped + _one_if(goes_on & ~finite)
    new = new.replace(step=step, skipped=skipped, finite=goes_on)
    measures = {"skipped": new.skipped, "finite": goes_on}
    if state.loss_scale is None:
        return new, measures
    adjusted = jax.tree.map(partial(jnp.where, goes_on), state.loss_scale.adjust(finite), state.loss_scale)
    return new.replace(loss_scale=adjusted), measures | {"loss_scale": adjusted.scale}


def _one_if(condition: jax.Array) -> jax.Array:
    return condition.astype(jnp.int32)


def _scan(function: Callable, carry, inputs):
    """As `lax.scan`: `carry, output = function(carry, element)` along the leading axis; outputs are stacked.

    On a GPU or TPU as a loop, so that the program stays small. On the CPU written out: there, XLA computes convolutions
    inside a loop more than ten times slower.
    """
    length = len(jax.tree.leaves(inputs)[0])
    if length > 1 and jax.default_backend() != "cpu":
        return lax.scan(function, carry, inputs)
    outputs = []
    for i in range(length):
        carry, output = function(carry, jax.tree.map(lambda array: array[i], inputs))  # noqa: B023, called at once
        outputs.append(output)
    return carry, jax.tree.map(lambda *arrays: jnp.stack(arrays), *outputs)


def eval_step(
    variables: dict,
    inputs: dict[str, jax.Array],
    store: Any,
    *,
    make_batch: MakeBatch,
    settings: StepSettings,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Scores one batch with BatchNorm's running statistics.

    Args:
      variables: the network's.
      inputs: this device's.
      store: data that stay on the devices.
      make_batch: (inputs, store) -> "image" uint8 [B,H,W,3] and "label" uint8 [B,H,W]; VOID pixels do not count.
      settings: network, loss and preprocessing.

    Returns:
      Of all devices: the sum of the "loss", float32, undivided, and of each image the "confusions", int32 [D,B,C,C],
      and the counts of "boundaries", int32 [D,B,C,4], gathered so that every process knows all; and of each of this
      device's images its "prediction", uint8 [B,H,W].
    """
    model = settings.model
    batch = lax.optimization_barrier(make_batch(inputs, store))
    logits = model.apply(variables, normalize(batch["image"], settings.preprocessing, model.dtype), train=False)
    prediction = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
    loss = settings.loss(logits, batch["label"], settings.class_weights)
    confusions = confusion_matrices(batch["label"], prediction, model.num_classes)
    boundaries = boundary_counts(batch["label"], prediction, model.num_classes)
    told = {"loss": lax.psum(loss, AXIS)} | lax.all_gather({"confusions": confusions, "boundaries": boundaries}, AXIS)
    return told, {"prediction": prediction}

"""The training step and the evaluation step, as seen by one device.

Losses are summed over the devices and divided once by the number of labeled pixels in the global batch: a mean of
per-device means would be wrong if devices have different numbers of void pixels. Losses that are not means over pixels
sum over the devices themselves (`losses.loss.Loss`).
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
from segnet_jax.metrics.co_occurrence import co_occurrences
from segnet_jax.metrics.confusion import confusion_matrices
from segnet_jax.nn.label_bits import classes_above_half
from segnet_jax.nn.network_interface import frozen_layers
from segnet_jax.nn.preprocessing import normalize
from segnet_jax.training.ema import ema_decay_at, swa_decay_at, update_ema
from segnet_jax.training.losses import multi_label, num_right, num_valid
from segnet_jax.training.plateau import find_plateau
from segnet_jax.training.small_arrays import all_finite, join_small, select
from segnet_jax.training.state import TrainState, split_layers
from segnet_jax.training.step_inputs import MakeBatch
from segnet_jax.training.step_settings import StepSettings


def train_steps(
    state: TrainState, inputs: dict[str, jax.Array], store: Any, *, make_batch: MakeBatch, settings: StepSettings
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Run K optimizer steps in one program.

    Args:
      state: training state, the same on all devices.
      inputs: this device's inputs, each array with a leading axis of K steps.
      store: data resident on the devices.
      make_batch: function of one step's inputs and the store that returns the batch for `train_step`.
      settings: settings of `train_step`.

    Returns:
      The state after K steps, and the metrics of each step, [K].
    """

    def step(state, inputs):
        # The barrier keeps the step's results bit-identical, however the batch is made.
        with jax.named_scope("input"):
            batch = make_batch(inputs, store)
        return train_step(state, lax.optimization_barrier(batch), settings)

    return _scan(step, state, inputs, settings.loop)


def train_step(
    state: TrainState, batch: dict[str, jax.Array], settings: StepSettings
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Run one optimizer step.

    Args:
      state: training state, the same on all devices.
      batch: this device's "image" uint8 [A,B,H,W,3] and "label" uint8 [A,B,H,W]: A batches for gradient accumulation.
      settings: settings of the step.

    Returns:
      The next state, and scalar metrics: "loss", "accuracy" (over labeled pixels), "learning_rate", "skipped" (total
      number of skipped steps) and "finite"; with float16 also "loss_scale", with `log_norms` also "gradient_norm"
      (before clipping) and "weight_norm". If loss, gradients or batch statistics are not finite, a float16 step is
      skipped: only the step number and the loss scale change. In other precisions, neither this nor any later
      step changes the state, and "finite" is False.
    """
    model = settings.model
    # Gradients are divided by the number of labeled pixels only after both are summed by one collective. Until then, a
    # power of two close to that number, which causes no rounding, keeps them in range.
    pixels = batch["label"].size * lax.axis_size(AXIS)
    factor = jnp.float32(0.5 ** (pixels.bit_length() - 1))
    if state.loss_scale is not None:
        factor *= state.loss_scale.scale

    # Frozen layers are constants of the loss, so their gradients are not computed.
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
        with jax.named_scope("loss"):
            loss = settings.loss(logits, label, settings.class_weights)
            count_right = multi_label.num_right if settings.multi_label else num_right
            return factor * loss, (updated["batch_stats"], loss, count_right(logits, label))

    def add_batch(carry, one):
        grads, batch_stats, loss, right = carry
        more_grads, (batch_stats, more_loss, more_right) = jax.grad(loss_fn, has_aux=True)(
            trainable, batch_stats, **one
        )
        return (jax.tree.map(jnp.add, grads, more_grads), batch_stats, loss + more_loss, right + more_right), ()

    nothing = (jax.tree.map(jnp.zeros_like, trainable), state.batch_stats, jnp.float32(0.0), jnp.int32(0))
    if model.dropout:
        batch = batch | {"keys": _keys(settings.seed, state.step, *batch["label"].shape[:2])}
    (grads, batch_stats, loss, right), _ = _scan(add_batch, nothing, batch, settings.loop)

    if settings.half_gradients:
        half = jnp.bfloat16 if state.loss_scale is None else jnp.float16  # float16 needs the loss scale
        grads = jax.tree.map(lambda grad: grad.astype(half), grads)
    # Counts are float32 because XLA combines only collectives of one dtype. Above 2^24 they are rounded, as is the
    # quotient.
    counts = (right.astype(jnp.float32), num_valid(batch["label"]).astype(jnp.float32))
    with jax.named_scope("gradient_sum"):
        grads, loss, (right, total) = lax.psum((grads, loss, counts), AXIS)  # not pmean: divided by `total` below
    total = jnp.maximum(total, 1)
    if model.sync_axis is None:
        batch_stats = lax.pmean(batch_stats, AXIS)  # synchronized statistics are already equal
    batch_stats = join_small(batch_stats)
    batch_stats |= split_layers(state.batch_stats, frozen_names)[0]  # unchanged bit for bit: the mean may round
    grads = join_small(jax.tree.map(lambda grad: grad.astype(jnp.float32) / (factor * total), grads))

    plateau = find_plateau(state.opt_state)
    extra = {} if plateau is None else {"value": loss / total}
    with jax.named_scope("optimizer"):
        updates, opt_state = settings.optimizer.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(trainable, updates) | frozen
    new = state.replace(params=params, opt_state=opt_state, batch_stats=batch_stats)
    is_ema = state.ema is not None and settings.swa is None
    if is_ema:
        decay = ema_decay_at(state.step - state.skipped, settings.ema_decay)
        new = new.replace(ema=_averaged(state.ema, new, decay, frozen_names))
    with jax.named_scope("guard"):
        new, metrics = _keep_finite(state, new, all_finite((loss, grads, batch_stats)))
    if state.ema is not None and not is_ema:  # if an epoch ends with a skipped step, the state before it is averaged
        mean = _averaged(state.ema, new, swa_decay_at(state.step, *settings.swa), frozen_names)
        new = new.replace(ema=select(new.finite, mean, state.ema))
    rate = jnp.asarray(settings.schedule(state.step - state.skipped), jnp.float32)
    if settings.log_norms:
        metrics |= {"gradient_norm": optax.tree.norm(grads), "weight_norm": optax.tree.norm(new.params)}
    return new, {
        "loss": loss / total,
        "accuracy": right / total,
        "learning_rate": rate if plateau is None else rate * plateau.scale,
        **metrics,
    }


def _averaged(ema: dict[str, Any], new: TrainState, decay: jax.Array, frozen_names: frozenset[str]) -> dict[str, Any]:
    """Return the average after one more state, with bit-identical frozen layers."""
    mean = update_ema(ema, {"params": new.params, "batch_stats": new.batch_stats}, decay)
    unchanged = {name: split_layers(tree, frozen_names)[0] for name, tree in ema.items()}
    return {name: tree | unchanged[name] for name, tree in mean.items()}


def _keys(seed: int, step: jax.Array, grad_accum_steps: int, batch_size: int) -> jax.Array:
    """Return the dropout keys of this device's images, [A,B], by their positions in the global batch (`BatchShard`)."""
    batch, position = jnp.arange(grad_accum_steps)[:, None], jnp.arange(batch_size)[None]
    device = batch * lax.axis_size(AXIS) + lax.axis_index(AXIS)
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.vmap(partial(jax.random.fold_in, key)))(device * batch_size + position)


def _keep_finite(state: TrainState, new: TrainState, finite: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the new state if the step was finite, else the old one, and metrics.

    The metrics are "skipped", "finite" and, with float16, "loss_scale".

    In float16, a non-finite step is skipped and halves the loss scale; training fails only at a scale of 1. In other
    precisions it fails immediately.
    """
    can_skip = jnp.bool_(False) if state.loss_scale is None else state.loss_scale.scale > 1
    is_counted = state.finite & (finite | can_skip)
    is_applied = is_counted & finite
    new = select(is_applied, new, state)
    step = state.step + is_counted.astype(jnp.int32)
    skipped = state.skipped + (is_counted & ~finite).astype(jnp.int32)
    new = new.replace(step=step, skipped=skipped, finite=is_counted)
    metrics = {"skipped": new.skipped, "finite": is_counted}
    if state.loss_scale is None:
        return new, metrics
    adjusted = jax.tree.map(partial(jnp.where, is_counted), state.loss_scale.adjust(finite), state.loss_scale)
    return new.replace(loss_scale=adjusted), metrics | {"loss_scale": adjusted.scale}


def _scan(function: Callable, carry, inputs, loop: bool | None):
    """Apply `lax.scan`, unrolled on the CPU, where XLA runs convolutions in a loop more than ten times slower.

    On GPUs and TPUs the loop keeps the program small.
    """
    length = len(jax.tree.leaves(inputs)[0])
    if length > 1 and (jax.default_backend() != "cpu" if loop is None else loop):
        return lax.scan(function, carry, inputs)
    outputs = []
    for i in range(length):
        carry, output = function(carry, jax.tree.map(lambda array: array[i], inputs))  # noqa: B023, called immediately
        outputs.append(output)
    return carry, jax.tree.map(lambda *arrays: jnp.stack(arrays), *outputs)


def eval_step(
    variables: dict,
    inputs: dict[str, jax.Array],
    store: Any,
    *,
    make_batch: MakeBatch,
    settings: StepSettings,
    forward: Callable[[Any, jax.Array], jax.Array] | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Evaluate one batch with BatchNorm's running statistics.

    Args:
      variables: variables of the network.
      inputs: this device's inputs.
      store: data resident on the devices.
      make_batch: function of inputs and store that returns "image" uint8 [B,H,W,3] and "label" uint8 [B,H,W], where
        VOID pixels are ignored.
      settings: network, loss and preprocessing.
      forward: function of variables and images that returns logits, float32 [B,H,W,C]; None to apply the network.

    Returns:
      A dict over all devices, with the sums of "loss" and, per image, "confusions", int32 [D,B,C,C] (with several
      classes per pixel, see `metrics.co_occurrence`), and "boundaries", int32 [D,B,C,4]; and a dict of this device,
      with "prediction", uint8 [B,H,W].
    """
    model = settings.model
    batch = lax.optimization_barrier(make_batch(inputs, store))
    if forward is None:
        logits = model.apply(variables, normalize(batch["image"], settings.preprocessing, model.dtype), train=False)
    else:
        logits = forward(variables, batch["image"])
    if settings.multi_label:
        prediction, count = classes_above_half(logits), co_occurrences
    else:
        prediction, count = jnp.argmax(logits, axis=-1).astype(jnp.uint8), confusion_matrices
    sums = settings.loss.sums(logits, batch["label"], settings.class_weights)
    confusions = count(batch["label"], prediction, model.num_classes)
    boundaries = boundary_counts(batch["label"], prediction, model.num_classes, settings.multi_label)
    totals = {"loss": lax.psum(sums, AXIS)} | lax.all_gather({"confusions": confusions, "boundaries": boundaries}, AXIS)
    return totals, {"prediction": prediction}

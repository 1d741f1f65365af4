"""Lovász-softmax: the convex extension of the Jaccard loss."""

import jax
import jax.numpy as jnp
from jax import lax

from segnet_jax.constants import VOID
from segnet_jax.training.losses.loss import Loss, one_hot, ratio, weighted_class_mean


def lovasz() -> Loss:
    """Return the Lovász-softmax loss: the mean over images of the weighted mean over the classes in the label.

    Errors are sorted within each image (`per_image` in the authors' code), which makes the loss independent of how
    images are distributed over devices. Images without labeled pixels do not count.

    Source: Berman et al. 2018 (arXiv 1705.08790), https://github.com/bermanmaxim/LovaszSoftmax.
    """

    def sums(logits, label, class_weights):
        num_images, num_classes = len(label), logits.shape[-1]
        p = jnp.moveaxis(jax.nn.softmax(logits), -1, 1).reshape(num_images, num_classes, -1)
        t = jnp.moveaxis(one_hot(label, num_classes), -1, 1).reshape(p.shape)
        valid = jnp.broadcast_to((label != VOID).reshape(num_images, 1, -1), p.shape)
        errors = jnp.where(valid, jnp.where(t, 1 - p, p), 0.0)
        each = jnp.sum(errors * _slopes(lax.stop_gradient(errors), t, valid), axis=-1)
        images = weighted_class_mean(each, jnp.any(t, axis=-1), class_weights)
        return jnp.sum(images), jnp.sum(jnp.any(valid[:, 0], axis=-1), dtype=jnp.float32)

    return Loss(sums, ratio)


def _slopes(errors: jax.Array, t: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the gradient of the Jaccard loss's extension with respect to the errors; all arrays are [B,C,N].

    The gradient depends only on the order of the errors. A second sort, by position, restores the order of the pixels
    without a scatter.
    """
    position = lax.broadcasted_iota(jnp.int32, errors.shape, errors.ndim - 1)
    key = jnp.where(valid, -errors, 1.0)  # largest errors first, void last
    _, t, position = lax.sort((key, t, position), num_keys=1)
    num_true = jnp.sum(t, axis=-1, keepdims=True, dtype=jnp.int32)
    num_true_so_far = jnp.cumsum(t, axis=-1, dtype=jnp.int32)
    num_seen = lax.broadcasted_iota(jnp.int32, t.shape, t.ndim - 1) + 1
    union = num_true + num_seen - num_true_so_far
    jaccard = 1 - (num_true - num_true_so_far).astype(jnp.float32) / union.astype(jnp.float32)
    before = jnp.pad(jaccard[..., :-1], ((0, 0), (0, 0), (1, 0)))
    return lax.sort((position, jaccard - before), num_keys=1)[1]

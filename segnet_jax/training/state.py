"""The training state: its initialization, checks, checksum and comparison."""

import hashlib
from collections.abc import Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from segnet_jax.training.ema import init_ema
from segnet_jax.training.precision import LossScale
from segnet_jax.training.small_arrays import all_finite


class TrainState(struct.PyTreeNode):
    """Everything that a step changes; replicated, without a device axis.

    Attributes:
      step: int32, number of finished steps, which is also the sampler's position.
      skipped: int32, number of these that were skipped because of non-finite float16 gradients.
      finite: bool, True if this and all earlier steps were finite. While it is False, steps change nothing: the state
        stays as it was before the first non-finite step.
      params: float32 tree of the network's parameters.
      batch_stats: float32 tree of BatchNorm's running means and variances.
      opt_state: state of the optimizer.
      loss_scale: loss scale for float16, otherwise None.
      ema: EMA of "params" and "batch_stats", or None.
    """

    step: jax.Array
    skipped: jax.Array
    finite: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    loss_scale: LossScale | None
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """The variables used for evaluation and inference: the EMA if there is one."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def split_layers(tree: dict[str, Any], names: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split parameters or statistics by layer: those in `names`, and the others."""
    chosen = {layer: parts for layer, parts in tree.items() if layer in names}
    return chosen, {layer: parts for layer, parts in tree.items() if layer not in chosen}


def init_variables(model: nn.Module, seed: int) -> dict[str, Any]:
    """Initialize the network's variables at random; running means are 0 and variances 1."""
    # This program runs once. On the CPU, optimizing it would take five times longer than everything else.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(partial(_init, model), compiler_options=options)(jax.random.key(seed))


def variable_shapes(model: nn.Module) -> dict[str, Any]:
    """Return the shapes and dtypes of `init_variables`, without computing anything."""
    return jax.eval_shape(partial(_init, model), jax.random.key(0))


def _init(model: nn.Module, key: jax.Array) -> dict[str, Any]:
    image = jnp.zeros((1, 32, 32, getattr(model, "channels", 3)), jnp.float32)  # of any size
    return model.init(key, image, train=False)


def num_bytes_of(state: TrainState) -> int:
    """Return the size of a state's arrays, or shapes, in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


@jax.jit
def is_finite(state: TrainState) -> jax.Array:
    """Return whether the state may be saved: all its values and all previous steps were finite."""
    return state.finite & all_finite((state.params, state.batch_stats, state.opt_state))


def clear_non_finite(state: TrainState) -> TrainState:
    """Clear the non-finite flag, so that training can resume from this state."""
    finite = jax.device_put(np.bool_(True), state.finite.sharding)
    return state.replace(finite=finite)


def create_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, precision: str, has_ema: bool = False
) -> TrainState:
    """Return the state before the first step."""
    return TrainState(
        step=jnp.int32(0),
        skipped=jnp.int32(0),
        finite=jnp.bool_(True),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        loss_scale=LossScale.create() if precision == "float16" else None,
        ema=init_ema(variables) if has_ema else None,
    )


def are_same(state: TrainState, other: TrainState) -> bool:
    """Return whether two states of numpy arrays with the same structure are bit-identical."""
    pairs = zip(*map(jax.tree.leaves, (state, other)), strict=True)
    return all(one.dtype == two.dtype and np.array_equal(_bytes_of(one), _bytes_of(two)) for one, two in pairs)


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def sum_of_state(state: TrainState) -> str:
    """Return the SHA-256 of a state of numpy arrays, as hex; only bit-identical states have the same."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data if array.nbytes else b"")
    return digest.hexdigest()


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by their paths, such as "params/conv1_1/kernel", in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}

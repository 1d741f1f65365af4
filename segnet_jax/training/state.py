"""What a training consists of at one moment, and how it begins."""

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
    """Everything that a step changes. It has no device axis: it is the same on all devices.

    Attributes:
      step: int32, finished steps; also the place in the plan.
      skipped: int32, how many of them changed nothing, for float16 gradients that were not finite.
      finite: bool, whether the next step may still change anything. The first step whose loss, gradients or statistics
        are not finite turns it off: the state stays what it was before that step until somebody looks.
      params: float32 tree of the network's parameters.
      batch_stats: float32 tree of BatchNorm's running means and variances.
      opt_state: the optimiser's, momentum above all.
      loss_scale: for float16, else None.
      ema: of "params" and "batch_stats" over the steps, None where none is kept.
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
        """The network's variables as Flax wants them, such as are scored and used: the average where there is one."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def split_layers(tree: dict[str, Any], names: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split parameters or statistics by layer: those with one of the names, and the others."""
    chosen = {layer: parts for layer, parts in tree.items() if layer in names}
    return chosen, {layer: parts for layer, parts in tree.items() if layer not in chosen}


def init_variables(model: nn.Module, seed: int) -> dict[str, Any]:
    """Draws the network's first parameters; statistics are 0 and 1."""
    # It runs once. On the CPU, optimising this program takes five times longer than all the rest of it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(partial(_init, model), compiler_options=options)(jax.random.key(seed))


def variable_shapes(model: nn.Module) -> dict[str, Any]:
    """What `init_variables` gives, as shapes and dtypes alone; nothing is computed."""
    return jax.eval_shape(partial(_init, model), jax.random.key(0))


def _init(model: nn.Module, key: jax.Array) -> dict[str, Any]:
    return model.init(key, jnp.zeros((1, 32, 32, 3), jnp.float32), train=False)  # of any size: parameters do not depend


def num_bytes_of(state: TrainState) -> int:
    """Bytes of a state's arrays, given as arrays or as shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


@jax.jit
def is_finite(state: TrainState) -> jax.Array:
    """Whether the state may be saved: neither a NaN nor an infinity in it, and no step behind it that met one."""
    return state.finite & all_finite((state.params, state.batch_stats, state.opt_state))


def clear_non_finite(state: TrainState) -> TrainState:
    """The state that a step which was not finite has left, ready to be saved and gone on from."""
    finite = jax.device_put(np.bool_(True), state.finite.sharding)
    return state.replace(finite=finite)


def create_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, precision: str, has_ema: bool = False
) -> TrainState:
    """The state before the first step."""
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
    """Whether two states of one structure, of numpy arrays, are the same to the last bit."""
    pairs = zip(*map(jax.tree.leaves, (state, other)), strict=True)
    return all(one.dtype == two.dtype and np.array_equal(_bytes_of(one), _bytes_of(two)) for one, two in pairs)


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def sum_of_state(state: TrainState) -> str:
    """One sha256 over all that a step changes: parameters, statistics, momentum, step, place in the plan.

    Args:
      state: as numpy arrays.

    Returns:
      Hex; equal for states that are equal to the last bit.
    """
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

"""Draw random parameters and statistics for a network in numpy.

flax's `init` compiles for eight seconds on a CPU, and its statistics (mean 0, variance 1), scale 1 and bias 0 would
hide mistakes.
"""

import jax
import jax.numpy as jnp
import numpy as np


def random_variables(model, seed: int = 0):
    """Return the tree of `model.init` with random numbers: MSRA kernels, scales and variances in 0.5..1.5."""
    model, image = model.clone(dtype=jnp.float32), jnp.zeros((1, 1, 1, getattr(model, "channels", 3)))
    shapes = jax.eval_shape(lambda key: model.init(key, image, train=False), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, array):
        match path[-1].key:
            case "kernel":
                values = rng.normal(0, np.sqrt(2 / np.prod(array.shape[:-1])), array.shape)
            case "bias" | "mean":
                values = rng.normal(0, 0.1, array.shape)
            case "scale" | "var":
                values = rng.uniform(0.5, 1.5, array.shape)
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)

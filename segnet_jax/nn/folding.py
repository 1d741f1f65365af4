"""BatchNorm folded into the convolutions before it: one pass over every map fewer in inference.

Source: SegNet-Tutorial's `BN-absorber.py`.
"""

from typing import Any

from jax import lax


def fold_batch_norm(variables: dict[str, Any], epsilon: float) -> dict[str, Any]:
    """Returns the variables of the folded network: those of `SegNet(folded=True)`, which computes the same.

    Args:
      variables: a network's "params" and "batch_stats".
      epsilon: its `batch_norm_epsilon`.

    Returns:
      {"params": ...}, each convolution with a kernel and a bias, float32.
    """
    params, statistics = variables["params"], variables["batch_stats"]
    convolutions = {name: layer for name, layer in params.items() if "kernel" in layer}

    def fold(name):
        layer = convolutions[name]
        if f"{name}_bn" not in params:
            return layer
        norm, running = params[f"{name}_bn"], statistics[f"{name}_bn"]
        factor = norm["scale"] * lax.rsqrt(running["var"] + epsilon)
        return {
            "kernel": layer["kernel"] * factor[None, None, None],
            "bias": norm["bias"] + (layer.get("bias", 0.0) - running["mean"]) * factor,
        }

    return {"params": {name: fold(name) for name in convolutions}}

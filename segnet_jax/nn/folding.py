"""Fold BatchNorm into the preceding convolutions, which saves a pass over every feature map in inference.

Source: SegNet-Tutorial's `BN-absorber.py`.
"""

from typing import Any

from jax import lax

from segnet_jax.nn.network_interface import NetworkInterface, batch_norms


def fold_batch_norm(variables: dict[str, Any], model: NetworkInterface) -> dict[str, Any]:
    """Convert variables of `model` to variables of `model.clone(folded=True)`, with equal outputs in inference.

    Returns:
      {"params": ...}, float32; each folded convolution has a kernel and a bias.
    """
    params, statistics = variables["params"], variables["batch_stats"]
    folding = batch_norms(model)

    def fold(name):
        layer = params[name]
        if name not in folding:
            return layer
        norm, running = params[folding[name]], statistics[folding[name]]
        factor = norm["scale"] * lax.rsqrt(running["var"] + model.batch_norm_epsilon)
        return {
            "kernel": layer["kernel"] * factor[None, None, None],
            "bias": norm["bias"] + (layer.get("bias", 0.0) - running["mean"]) * factor,
        }

    return {"params": {name: fold(name) for name in params if name not in folding.values()}}

"""BatchNorm folded into the convolutions before it: one pass over every map fewer in inference.

Source: SegNet-Tutorial's `BN-absorber.py`.
"""

from typing import Any

from jax import lax

from segnet_jax.nn.contract import NetworkContract, batch_norms


def fold_batch_norm(variables: dict[str, Any], model: NetworkContract) -> dict[str, Any]:
    """Return the variables of the folded network, `model.clone(folded=True)`, which computes the same.

    Args:
      variables: the network's "params" and "batch_stats".
      model: the network, whose `layers` say which BatchNorm is folded into which convolution.

    Returns:
      {"params": ...}, each folded convolution with a kernel and a bias, float32.
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

"""The interface of a network: everything that training, inference and export require of it.

A network is a Flax module that segments images. It has

* `__call__(image, *, train, keys=None)`, which maps float [B,H,W,channels] to logits, float32 [B,H,W,num_classes], for
  any height and width. With `train`, BatchNorm uses batch statistics and updates "batch_stats". `keys` [B] are random
  keys for dropout, one per image; without keys there is no dropout.
* the attributes of `NetworkInterface`, as dataclass fields or properties. `training.build_model` fills each field
  from the config field of the same name, so a network declares only the fields that it uses. Networks without a
  field `channels` take RGB images.
* variables nested two levels deep: {"params": {layer: {part: array}}, "batch_stats": {layer: {part: array}}}. `layers`
  describes every layer; `PARTS` lists the arrays of each kind of layer.
* one call of `tap` in each encoder stage, which publishes the stage's features and pooling code.

With `folded=True` it has neither BatchNorm nor "batch_stats". Each convolution that would precede a BatchNorm has a
bias, and `fold_batch_norm` computes the variables. Code outside a network's module never parses layer names: kind,
stage and folding come from `layers`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

Kind = Literal["convolution", "batch_norm", "upsampling"]
Section = Literal["encoder", "decoder", "head"]
Role = Literal["kernel", "bias", "scale", "shift"]
SECTIONS, ROLES = get_args(Section), get_args(Role)

PARTS: dict[Kind, dict[str, Role]] = {
    "convolution": {"kernel": "kernel", "bias": "bias"},
    "batch_norm": {"scale": "scale", "bias": "shift"},
    "upsampling": {"kernel": "kernel"},
}
"""Names and roles of the parameters of each kind of layer. A BatchNorm also has "mean" and "var" in "batch_stats"."""


@dataclass(frozen=True)
class LayerSpec:
    """A layer with parameters.

    Attributes:
      name: the layer's key in "params" and, for a BatchNorm, in "batch_stats".
      kind: "convolution", "batch_norm", or "upsampling" (a kernel without BatchNorm).
      section: "encoder", "decoder" or "head". Head layers have the classes as last axis; a new dataset replaces them.
      stage: encoder stage, counted from 1; 0 outside the encoder.
      folds_into: for a BatchNorm, the preceding convolution, into which it is folded for inference.
    """

    name: str
    kind: Kind
    section: Section
    stage: int = 0
    folds_into: str = ""


class NetworkInterface(Protocol):
    """Attributes that a network has in addition to those of a Flax module.

    Attributes:
      num_classes: channels of the logits.
      pooling: how 2x2 pooling treats an odd last row or column: "floor" drops it, "ceil" keeps it.
      dropout: dropout rate, applied if keys are passed; 0 for no dropout.
      batch_norm_momentum: decay rate of the running statistics.
      batch_norm_epsilon: added to the variance.
      frozen_stages: number of leading encoder stages whose BatchNorm uses its running statistics in training too,
        without updating them.
      folded: whether each BatchNorm is folded into its convolution.
      sync_axis: mapped axis over which BatchNorm synchronizes its statistics; None for per-device statistics.
      dtype: dtype of activations; parameters and statistics are float32.
      layers: all layers with parameters of the unfolded network, in forward order.
    """

    num_classes: int
    pooling: str
    dropout: float
    batch_norm_momentum: float
    batch_norm_epsilon: float
    frozen_stages: int
    folded: bool
    sync_axis: str | None
    dtype: Any

    @property
    def layers(self) -> tuple[LayerSpec, ...]: ...  # noqa: D102, see above

    # methods of every Flax module
    def apply(self, *args: Any, **kwargs: Any) -> Any: ...  # noqa: D102
    def clone(self, **kwargs: Any) -> Any: ...  # noqa: D102


def convolution_block(name: str, section: Section, stage: int = 0) -> tuple[LayerSpec, LayerSpec]:
    """Return the specs of a convolution and of the BatchNorm after it, NAME_bn."""
    convolution = LayerSpec(name, "convolution", section, stage)
    return convolution, LayerSpec(f"{name}_bn", "batch_norm", section, stage, folds_into=name)


# --- queries ---


def encoder_convolutions(model: NetworkInterface) -> list[list[str]]:
    """Return the names of the encoder's convolutions, one list per stage."""
    convolutions = [layer for layer in model.layers if layer.section == "encoder" and layer.kind == "convolution"]
    return [[layer.name for layer in convolutions if layer.stage == n] for n in range(1, num_stages(model) + 1)]


def num_stages(model: NetworkInterface) -> int:
    """Return the number of encoder stages."""
    return max(layer.stage for layer in model.layers)


def section_layers(model: NetworkInterface, section: Section) -> frozenset[str]:
    """Return the names of the layers in a section."""
    return frozenset(layer.name for layer in model.layers if layer.section == section)


def frozen_layers(model: NetworkInterface) -> frozenset[str]:
    """Return the names of the layers in frozen stages, whose parameters get no gradient in the training step."""
    return frozenset(layer.name for layer in model.layers if 0 < layer.stage <= model.frozen_stages)


def head_layers(model: NetworkInterface) -> frozenset[str]:
    """Return the names of the layers whose arrays have the classes as last axis."""
    return section_layers(model, "head")


def batch_norms(model: NetworkInterface) -> dict[str, str]:
    """Return {convolution: BatchNorm after it} for all convolutions with BatchNorm."""
    return {layer.folds_into: layer.name for layer in model.layers if layer.folds_into}


def role_mask(model: NetworkInterface, *roles: Role) -> Callable[[Mapping[str, Any]], dict[str, dict[str, bool]]]:
    """Return a mask function for Optax: parameters -> boolean tree, True for parameters with one of the roles.

    Raises:
      KeyError: If the returned function gets a layer missing from `model.layers`, or a part that its kind lacks.
    """
    kinds: dict[str, Kind] = {layer.name: layer.kind for layer in model.layers}

    def mask(params: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
        return {layer: {part: PARTS[kinds[layer]][part] in roles for part in parts} for layer, parts in params.items()}

    return mask


def section_mask(
    model: NetworkInterface, section: Section
) -> Callable[[Mapping[str, Any]], dict[str, dict[str, bool]]]:
    """Return a mask function for Optax: parameters -> boolean tree, True in the layers of a section."""
    layers = section_layers(model, section)

    def mask(params: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
        return {layer: dict.fromkeys(parts, layer in layers) for layer, parts in params.items()}

    return mask


# --- taps ---


def tap(module: nn.Module, stage: int, features: jax.Array, code: jax.Array | None = None) -> None:
    """Publish an encoder stage's features for `collect_taps`; free if nothing collects them.

    Args:
      module: the network; call `tap` in its `__call__`.
      stage: encoder stage, counted from 1.
      features: [B,H,W,C], before the stage's pooling layer.
      code: uint8 [B,h,w,C] from `max_pool_with_code`; None if the network pools differently.
    """
    module.sow("intermediates", f"features{stage}", features)
    if code is not None:
        module.sow("intermediates", f"code{stage}", code)


def collect_taps(
    model: NetworkInterface, variables: Mapping[str, Any], image: jax.Array, kinds: tuple[Kind, ...] = ()
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Apply a network to preprocessed images for inference, and also return intermediate results; it can be jitted.

    Returns:
      The logits, and a dict with "features1", "code1" and so on, and the outputs of the layers of `kinds` by name.
    """
    chosen = {layer.name for layer in model.layers if layer.kind in kinds}
    logits, seen = model.apply(
        variables,
        image,
        train=False,
        capture_intermediates=lambda module, _: module.name in chosen,
        mutable=["intermediates"],
    )
    found = seen.get("intermediates", {})
    return logits, {name: each["__call__"][0] if isinstance(each, dict) else each[0] for name, each in found.items()}


# --- checking ---


def check_interface(model: NetworkInterface, channels: int = 3) -> None:
    """Check a network's layers, parameters, folding and taps against the interface, by shape inference only.

    Raises:
      ValueError: If the network does not implement the interface.
    """
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    for folded in (False, True):
        variant = model.clone(folded=folded, sync_axis=None)
        variables = jax.eval_shape(partial(variant.init, train=False), jax.random.key(0), image)
        folding = batch_norms(model)
        layers = [layer for layer in model.layers if not (folded and layer.kind == "batch_norm")]
        declared = {layer.name: layer for layer in layers}
        if len(declared) < len(layers):
            names = [layer.name for layer in layers]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"`layers` of {type(model).__name__} contains {', '.join(twice)} more than once")
        if variables["params"].keys() != declared.keys():
            differing = sorted(variables["params"].keys() ^ declared.keys())
            raise ValueError(f"`layers` and the parameters of {type(model).__name__} differ in {differing}")
        for name, parts in variables["params"].items():
            if unknown := parts.keys() - PARTS[declared[name].kind].keys():
                known = sorted(PARTS[declared[name].kind])
                raise ValueError(
                    f"the {declared[name].kind} {name} may only have the parameters {known}, got {sorted(unknown)}"
                )
            if folded and name in folding and parts.keys() != {"kernel", "bias"}:
                raise ValueError(f"the folded convolution {name} must have a kernel and a bias, got {sorted(parts)}")
        statistics = {layer.name for layer in layers if layer.kind == "batch_norm"}
        if variables.get("batch_stats", {}).keys() != statistics:
            raise ValueError(f"the batch_stats of {type(model).__name__} do not match its BatchNorm layers")
    _, taps = jax.eval_shape(partial(collect_taps, variant), variables, image)
    if missing := [n for n in range(1, num_stages(model) + 1) if f"features{n}" not in taps]:
        raise ValueError(f"{type(model).__name__} does not call `tap` in encoder stages {missing}")

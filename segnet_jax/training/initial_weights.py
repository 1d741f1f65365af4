"""Compute the initial variables of a training run: random, from a VGG encoder, or from a whole trained network.

A whole network must match except for its classes. Only the size of the head (the last convolution and its BatchNorm, if
any) depends on the classes, which are the last axis of its arrays.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.config.flag_specs import flags_of, words_of
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.distributed.data_parallel import Devices, prefetch, replicate
from segnet_jax.nn.network_interface import NetworkInterface, batch_norms, head_layers
from segnet_jax.nn.preprocessing import IMAGENET_STD, PREPROCESSINGS, RAW, TORCH, Preprocessing
from segnet_jax.system.console import bar
from segnet_jax.system.errors import UserError, listed
from segnet_jax.training.batch_norm_statistics import average_statistics
from segnet_jax.training.pretrained_batch_norm import Affine, measure_convolutions, preserve_features
from segnet_jax.training.state import init_variables
from segnet_jax.weights.vgg import VGG

Tree = dict[str, dict[str, dict[str, Any]]]
"""Collection -> layer -> part: a network's variables."""

FITTING = (
    *("network", "encoder", "depth", "stage_convolutions", "stage_channels", "kernel_size", "width", "pooling"),
    *("upsampling", "encoder_addition", "decoder", "conv_bias", "final_batch_norm", "batch_norm_epsilon"),
    *("output", "channels", "image_bits"),
)
"""Config fields that define the network's function; they must match those of the network to start from."""


@dataclass(frozen=True)
class TrainedSegNet:
    """A trained network to start from.

    Attributes:
      source: the value of `--init`.
      about: origin of the parameters in the source, for example "step 7, the best".
      config: config whose `FITTING` fields describe the network.
      classes: class names; None if the source does not store them.
      preprocessing: preprocessing of the network's input.
      variables: "params" and "batch_stats", float32 numpy.
    """

    source: str
    about: str
    config: Config
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing
    variables: Tree


def check_fits(trained: TrainedSegNet, config: Config, shapes: Tree, head: Collection[str]) -> None:
    """Check that a trained network matches the network to be trained, except for its classes.

    `config` and `shapes` describe the network to be trained; in its layers `head`, the last axis is the classes.

    Raises:
      UserError: If the networks differ; the message names the differences and the flags that resolve them.
    """
    differing = {name: (getattr(trained.config, name), getattr(config, name)) for name in FITTING}
    if config.network == trained.config.network == "segnet-basic":  # ignores both fields
        differing |= dict.fromkeys(("encoder", "final_batch_norm"), (None, None))
    differing = {name: both for name, both in differing.items() if both[0] != both[1]}
    if differing:
        differences = listed([f"{name} {theirs} instead of {ours}" for name, (theirs, ours) in differing.items()])
        raise UserError(
            f"the network of --init {trained.source} differs from the one to be trained: {differences}",
            kind="other-network",
            file=trained.source,
            fix=" ".join(_words(name, theirs) for name, (theirs, _) in differing.items()),
        )
    theirs, ours = (_sizes(tree, head) for tree in (trained.variables, shapes))
    if wrong := [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]:
        differences = listed(
            [f"{name} {theirs.get(name, 'missing')} instead of {ours.get(name, 'none')}" for name in wrong]
        )
        raise UserError(
            f"the network of --init {trained.source} differs from the one to be trained: {differences}",
            kind="other-network",
            file=trained.source,
        )
    rows = {
        array.shape[-1]
        for layers in trained.variables.values()
        for layer, parts in layers.items()
        if layer in head
        for array in parts.values()
    }
    num_rows = len(trained.classes or ()) if trained.config.output == "softmax" else 1
    if len(rows) > 1 or (trained.classes is not None and rows != {num_rows}):
        sizes = ", ".join(map(str, sorted(rows)))
        names = "" if trained.classes is None else f", but it names {len(trained.classes)}"
        raise UserError(
            f"--init {trained.source} is damaged: its last layer has {sizes} classes{names}",
            kind="other-network",
            file=trained.source,
        )


def _words(name: str, value: Any) -> str:
    return " ".join(words_of(next(flag for flag in flags_of(Config) if flag.name == name), value))


def _sizes(tree: Tree, head: Collection[str]) -> dict[str, list[int]]:
    """Return {"layer/part": shape}, without the class axis."""
    return {
        f"{layer}/{part}": list(array.shape[:-1] if layer in head else array.shape)
        for layers in tree.values()
        for layer, parts in layers.items()
        for part, array in parts.items()
    }


def start_from(trained: TrainedSegNet, classes: Sequence[str], head: Collection[str], draw: Callable[[], Tree]) -> Tree:
    """Return the trained variables, with a head that has trained rows for shared classes and random rows for new ones.

    The trained network must pass `check_fits`. `draw` returns random variables, and is called only for new classes.
    """
    indices = shared_classes(trained, classes)
    if trained.config.output == "sigmoid":  # one row for both classes
        indices, classes = dict.fromkeys(list(indices)[:1], 0), list(classes)[:1]
    random = draw() if len(indices) < len(classes) else trained.variables

    def initial_parts(collection: str, layer: str, parts: Mapping[str, Any]) -> dict[str, Any]:
        if layer not in head:
            return dict(parts)
        return {part: _rows(array, random[collection][layer][part], indices, classes) for part, array in parts.items()}

    return {
        collection: {layer: initial_parts(collection, layer, parts) for layer, parts in layers.items()}
        for collection, layers in trained.variables.items()
    }


def shared_classes(trained: TrainedSegNet, classes: Sequence[str]) -> dict[str, int]:
    """Return {class name: index in the trained network} for the classes that both networks have.

    The single row of a sigmoid head serves two classes, and is kept only if both are the same.
    """
    if trained.config.output == "sigmoid" and trained.classes != tuple(classes):
        return {}
    indices = {name: index for index, name in enumerate(trained.classes or ())}
    return {name: indices[name] for name in classes if name in indices}


def describe_start(trained: TrainedSegNet, classes: Sequence[str]) -> str:
    """Describe the source and the kept, new and left-out classes in one line."""
    kept = shared_classes(trained, classes)
    start = f"{trained.source}, {trained.about}"
    if trained.classes is None:
        return f"{start}: the head is new because the file does not name its classes"
    new = [name for name in classes if name not in kept]
    left_out = [name for name in trained.classes if name not in kept]
    if not new and not left_out:
        return f"{start}: all {len(classes)} classes kept"
    parts = (("kept", list(kept)), ("new", new), ("left out", left_out))
    return f"{start}: " + "; ".join(f"{heading} {', '.join(names) or 'none'}" for heading, names in parts)


def _rows(trained: Any, random: Any, indices: Mapping[str, int], classes: Sequence[str]) -> np.ndarray:
    """Return an array of the head: trained rows for the classes in `indices`, random rows for the others."""
    rows = [
        np.asarray(trained)[..., indices[name]] if name in indices else np.asarray(jax.device_get(random))[..., index]
        for index, name in enumerate(classes)
    ]
    return np.stack(rows, axis=-1)


STATISTICS_IMAGES = 64  # enough for stable batch-norm statistics of a pretrained encoder


def choose_preprocessing(
    config: Config, initial: VGG | TrainedSegNet | None, statistics: Callable[[], tuple[Sequence[float], ...]]
) -> Preprocessing:
    """Choose the preprocessing of a whole trained network, else of the config, else of the encoder's weights.

    Images other than 8-bit RGB are normalized by the training images' mean and standard deviation (`statistics`), and
    scaled so that the encoder's first layer gets values as large as from ImageNet's images.

    Raises:
      UserError: If the config contradicts a whole trained network.
    """
    configured = PREPROCESSINGS.get(config.preprocessing)
    if isinstance(initial, TrainedSegNet):
        if configured not in (None, initial.preprocessing):
            raise UserError(
                f"--preprocessing {config.preprocessing} does not match --init {initial.source}, whose mean and "
                f"standard deviation are {initial.preprocessing.mean} and {initial.preprocessing.std}",
                fix="--preprocessing auto",
            )
        return initial.preprocessing
    if (config.channels, config.image_bits) != (3, "8"):
        if config.preprocessing == "raw":
            return Preprocessing((0.0,) * config.channels, (1.0,) * config.channels)
        mean, std = statistics()
        largest = np.mean(initial.preprocessing.std) if initial else IMAGENET_STD
        factor = float(largest / IMAGENET_STD)
        return Preprocessing(tuple(mean), tuple(max(each, 1.0) * factor for each in std))
    if configured is not None:
        return configured
    if config.network == "segnet-basic":
        return RAW
    return initial.preprocessing if initial else TORCH


def first_variables(
    config: Config,
    model: NetworkInterface,
    initial: VGG | TrainedSegNet | None,
    preprocessing: Preprocessing,
    batch_of: Callable[[int], tf_data.Batch],
    devices: Devices,
    classes: Sequence[str] = (),
) -> dict:
    """Return the initial variables: random, random with a pretrained encoder, or from a whole trained network.

    With a pretrained encoder, the batch-norm statistics and, depending on `--init-batch-norm`, the encoder's scales and
    shifts are estimated on some training images.
    """
    draw = partial(init_variables, model, config.seed)
    if isinstance(initial, TrainedSegNet):
        return start_from(initial, classes, head_layers(model), draw)
    variables = draw()
    if initial is None:
        return variables
    from segnet_jax.weights.insert_vgg import affine_maps, insert_encoder

    params, batch_stats = insert_encoder(
        variables["params"],
        variables["batch_stats"],
        initial,
        model,
    )
    variables = {"params": params, "batch_stats": batch_stats}
    images_per_batch = devices.total * config.batch_size_per_device  # only the first of the accumulated batches is used
    num_batches = -(-STATISTICS_IMAGES // images_per_batch)

    def measure(function: Callable, *args) -> dict:
        with bar("batch-norm statistics", num_batches) as advance:
            batches = prefetch(map(batch_of, range(num_batches)), devices)
            return function(*args, batches, preprocessing, devices, advance)

    if config.init_batch_norm == "identity":
        model = model.clone(frozen_stages=0)
    else:
        affine = {conv: Affine(*maps) for conv, maps in affine_maps(initial).items() if conv in params}
        kernels = {conv: params[conv]["kernel"] for conv in affine}
        statistics = measure(measure_convolutions, model, kernels, affine)
        rescale, normalize = config.init_batch_norm != "preserve", config.init_batch_norm == "normalize"
        variables = preserve_features(
            variables, affine, statistics, batch_norms(model), config.batch_norm_epsilon, rescale, normalize
        )
        model = model.clone(frozen_stages=config.num_stages)  # keeps these statistics; the decoder's are estimated next
    batch_stats = measure(average_statistics, model, replicate(variables, devices))
    return {"params": variables["params"], "batch_stats": batch_stats}

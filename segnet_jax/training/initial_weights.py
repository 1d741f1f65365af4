"""A trained SegNet as the start of another training: what must fit, and the head where the classes differ.

The head is the last convolution with its BatchNorm, if it has one: the only layers whose size depends on the classes.
Along the last axis of each of their arrays lie the classes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.distributed.data_parallel import (
    Devices,
    prefetch,
    replicate,
)
from segnet_jax.nn.contract import NetworkContract, batch_norms, head_layers
from segnet_jax.nn.preprocessing import PREPROCESSINGS, RAW, TORCH, Preprocessing
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
)
"""Fields of the config that say what the network computes: they must be those of the network to start from."""


@dataclass(frozen=True)
class TrainedSegNet:
    """A trained network to start from.

    Attributes:
      source: as `--init` names it.
      about: which of the source's parameters they are, such as "step 7, the best".
      config: its `FITTING` fields are the network's.
      classes: their names; None where the source does not tell them.
      preprocessing: what the network expects of an image.
      variables: "params" and "batch_stats", float32 numpy.
    """

    source: str
    about: str
    config: Config
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing
    variables: Tree


def check_fits(trained: TrainedSegNet, config: Config, shapes: Tree, head: Collection[str]) -> None:
    """Check that a trained network has the structure of the one to be trained, but for its classes.

    Args:
      trained: the network to start from.
      config: of the training.
      shapes: of the variables of the network to be trained.
      head: the names of the layers whose last axis is the classes.

    Raises:
      UserError: naming what differs and the flags that would make it fit.
    """
    differing = {name: (getattr(trained.config, name), getattr(config, name)) for name in FITTING}
    if config.network == trained.config.network == "segnet-basic":  # which has neither
        differing |= dict.fromkeys(("encoder", "final_batch_norm"), (None, None))
    differing = {name: both for name, both in differing.items() if both[0] != both[1]}
    if differing:
        told = listed([f"{name} {theirs} there and {ours} here" for name, (theirs, ours) in differing.items()])
        raise UserError(
            f"the network of --init {trained.source} is not the one to be trained: {told}",
            kind="other-network",
            file=trained.source,
            fix=" ".join(_flag(name, theirs) for name, (theirs, _) in differing.items()),
        )
    theirs, ours = (_sizes(tree, head) for tree in (trained.variables, shapes))
    if wrong := [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]:
        told = listed([f"{name} {theirs.get(name, 'missing')} for {ours.get(name, 'none')}" for name in wrong])
        raise UserError(
            f"the network of --init {trained.source} is not the one to be trained: {told}",
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
    if len(rows) > 1 or (trained.classes is not None and rows != {len(trained.classes)}):
        found = ", ".join(map(str, sorted(rows)))
        names = "" if trained.classes is None else f" and names {len(trained.classes)}"
        raise UserError(
            f"--init {trained.source} is damaged: its last layer has {found} classes{names}",
            kind="other-network",
            file=trained.source,
        )


def _flag(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    return f"--{flag} {value}" if not isinstance(value, bool) else f"--{flag}" if value else f"--no-{flag}"


def _sizes(tree: Tree, head: Collection[str]) -> dict[str, list[int]]:
    """The shape of each array by its name, without the axis of the classes."""
    return {
        f"{layer}/{part}": list(array.shape[:-1] if layer in head else array.shape)
        for layers in tree.values()
        for layer, parts in layers.items()
        for part, array in parts.items()
    }


def start_from(trained: TrainedSegNet, classes: Sequence[str], head: Collection[str], draw: Callable[[], Tree]) -> Tree:
    """Return the variables to begin with: the trained ones, and in the head what the same classes had.

    Args:
      trained: the network to start from; it fits.
      classes: of the training.
      head: the names of the layers whose last axis is the classes.
      draw: makes random variables of the network to be trained; called where there is a class to be drawn for.
    """
    places = kept_classes(trained, classes)
    drawn = draw() if len(places) < len(classes) else trained.variables

    def headed(collection: str, layer: str, parts: Mapping[str, Any]) -> dict[str, Any]:
        if layer not in head:
            return dict(parts)
        return {part: _rows(array, drawn[collection][layer][part], places, classes) for part, array in parts.items()}

    return {
        collection: {layer: headed(collection, layer, parts) for layer, parts in layers.items()}
        for collection, layers in trained.variables.items()
    }


def kept_classes(trained: TrainedSegNet, classes: Sequence[str]) -> dict[str, int]:
    """Return the classes of a training that the trained network knows by the same name, and their places there."""
    there = {name: place for place, name in enumerate(trained.classes or ())}
    return {name: there[name] for name in classes if name in there}


def described(trained: TrainedSegNet, classes: Sequence[str]) -> str:
    """Return one line that says what a training starts from, which classes keep their rows of the head, which are new.

    Args:
      trained: the network to start from.
      classes: of the training.
    """
    kept = kept_classes(trained, classes)
    start = f"{trained.source}, {trained.about}"
    if trained.classes is None:
        return f"{start}: the head is new, for the file does not name its classes"
    new = [name for name in classes if name not in kept]
    left = [name for name in trained.classes if name not in kept]
    if not new and not left:
        return f"{start}: all {len(classes)} classes kept"
    parts = (("kept", list(kept)), ("new", new), ("left out", left))
    return f"{start}: " + "; ".join(f"{what} {', '.join(names) or 'none'}" for what, names in parts)


def _rows(trained: Any, drawn: Any, places: Mapping[str, int], classes: Sequence[str]) -> np.ndarray:
    """An array of the head, with the classes along its last axis: those that are kept, and those that were drawn."""
    rows = [
        np.asarray(trained)[..., places[name]] if name in places else np.asarray(jax.device_get(drawn))[..., place]
        for place, name in enumerate(classes)
    ]
    return np.stack(rows, axis=-1)


CALIBRATION_IMAGES = 64  # enough for the statistics of a pretrained encoder to settle


def choose_preprocessing(config: Config, initial: VGG | TrainedSegNet | None) -> Preprocessing:
    """What is done to pixels: what the whole trained network expects, else as the config says, else as the encoder.

    Raises:
      UserError: the config says otherwise than a whole trained network expects.
    """
    wanted = PREPROCESSINGS.get(config.preprocessing)
    if isinstance(initial, TrainedSegNet):
        if wanted not in (None, initial.preprocessing):
            raise UserError(
                f"--preprocessing {config.preprocessing} is not that of --init {initial.source}, whose mean and "
                f"deviation are {initial.preprocessing.mean} and {initial.preprocessing.std}",
                fix="--preprocessing auto",
            )
        return initial.preprocessing
    if wanted is not None:
        return wanted
    if config.network == "segnet-basic":
        return RAW
    return initial.preprocessing if initial else TORCH


def first_variables(
    config: Config,
    model: NetworkContract,
    initial: VGG | TrainedSegNet | None,
    preprocessing: Preprocessing,
    batch_of: Callable[[int], tf_data.Batch],
    devices: Devices,
    classes: Sequence[str] = (),
) -> dict:
    """Draws the first parameters and puts the trained encoder among them, or takes those of a whole trained network.

    BatchNorm's statistics, of which a plain VGG knows nothing, are then taken from some training images, and the
    encoder's scale and shift with them where `--init-batch-norm` says so.
    """
    draw = partial(init_variables, model, config.seed)
    if isinstance(initial, TrainedSegNet):
        return start_from(initial, classes, head_layers(model), draw)
    variables = draw()
    if initial is None:
        return variables
    from segnet_jax.weights.insert import affine_maps, insert_encoder

    params, batch_stats = insert_encoder(
        variables["params"],
        variables["batch_stats"],
        initial,
        model,
    )
    variables = {"params": params, "batch_stats": batch_stats}
    at_once = devices.total * config.batch_size_per_device  # of what is accumulated only the first is looked at
    num_batches = -(-CALIBRATION_IMAGES // at_once)

    def measure(measurement: Callable, *args) -> dict:
        with bar("calibrating BatchNorm", num_batches) as advance:
            batches = prefetch(map(batch_of, range(num_batches)), devices)
            return measurement(*args, batches, preprocessing, devices, advance)

    if config.init_batch_norm == "identity":
        model = model.clone(frozen_stages=0)
    else:
        affine = {conv: Affine(*maps) for conv, maps in affine_maps(initial).items() if conv in params}
        kernels = {conv: params[conv]["kernel"] for conv in affine}
        found = measure(measure_convolutions, model, kernels, affine)
        rescale, normalize = config.init_batch_norm != "preserve", config.init_batch_norm == "normalize"
        variables = preserve_features(
            variables, affine, found, batch_norms(model), config.batch_norm_epsilon, rescale, normalize
        )
        model = model.clone(frozen_stages=config.num_stages)  # the decoder is measured behind these very features
    batch_stats = measure(average_statistics, model, replicate(variables, devices))
    return {"params": variables["params"], "batch_stats": batch_stats}

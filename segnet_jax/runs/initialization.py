"""Read the weights that `--init` names: a VGG for the encoder, or a trained SegNet for the whole network.

A SegNet comes from a run folder, from `export --format safetensors` (the file, its folder, or a repository on the
Hugging Face Hub that contains it), or from a `.caffemodel`. The run is not modified. A damaged checkpoint is an error:
no older checkpoint is used instead.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

import jax

from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_protocol
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.distributed.data_parallel import Devices
from segnet_jax.nn.network_interface import head_layers
from segnet_jax.nn.preprocessing import PREPROCESSINGS, RAW
from segnet_jax.runs.config_checks import check_takes_vgg
from segnet_jax.system.bucket_address import check_named, is_address
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import cache_folder
from segnet_jax.system.lock import is_held
from segnet_jax.training import build_model, checkpoint_folders
from segnet_jax.training.custom_objects import CustomObjects, missing
from segnet_jax.training.initial_weights import TrainedSegNet, check_fits, describe_start
from segnet_jax.training.network_source import config_from, is_exported, local_folder, read_exported
from segnet_jax.training.restore_network import restore
from segnet_jax.training.state import variable_shapes
from segnet_jax.weights.published import PUBLISHED, obtain
from segnet_jax.weights.segnet_safetensors import ExportedSegNet
from segnet_jax.weights.vgg import VGG

_CAFFE_RECIPES = {"segnet": "camvid-tutorial", "segnet-basic": "segnet-basic"}


def read_initial(
    config: Config,
    devices: Devices,
    share: Callable[[str], str] = lambda text: text,
    own: CustomObjects = build_model.NO_OBJECTS,
) -> VGG | TrainedSegNet | None:
    """Read the weights that `--init` names, downloading a published VGG if needed; return None for "none".

    Args:
      config: config of the training run.
      devices: devices to train on.
      share: function that returns process 0's text in every process.
      own: custom objects; a run to start from may use the same network.

    Raises:
      UserError: If the weights are missing or damaged, do not fit, come from a run that is still training, or are at
        an address that this command does not name.
    """
    if config.init == "none":
        return None
    if is_address(config.init):  # perhaps only of a stranger's config
        check_named("--init", config.init)
    # The readers of all formats are imported only if weights are read.
    from segnet_jax.weights.load import kind_of_file, read_vgg

    path = pathlib.Path(local_folder(config.init)).expanduser()
    if config.init not in PUBLISHED and is_exported(path):
        trained = _exported_segnet(config, read_exported(path), path)
    elif config.init not in PUBLISHED and path.is_dir():
        trained = _read_run(config, path, devices, share, own)
    else:
        path = obtain(str(path) if is_address(config.init) else config.init, cache_folder())
        kind = "vgg" if config.init in PUBLISHED else kind_of_file(path)
        if kind == "vgg":
            check_takes_vgg(config)
            return read_vgg(path, config.encoder, PREPROCESSINGS.get(config.preprocessing))  # None for "auto"
        trained = _read_own(config, path) if kind == "segnet" else _read_caffe(config, path)
    model = build_model.build_model(config, 1, "float32", own)  # the check does not depend on the number of classes
    check_fits(trained, config, variable_shapes(model), head_layers(model))
    return trained


def describe_initial(config: Config, initial: VGG | TrainedSegNet, classes: Sequence[str]) -> str:
    """Return one line about the initial weights: their source, and which classes keep their weights."""
    from segnet_jax.weights.formats.published_sums import describe

    if isinstance(initial, TrainedSegNet):
        return describe_start(initial, classes)
    return f"{config.init}: {describe(initial)}"


def check_is_other_run(config: Config) -> None:
    """Check that a run to start from is not the run being trained.

    Raises:
      UserError: If both are the same run.
    """
    path = pathlib.Path(config.init).expanduser()
    if config.run and path.is_dir() and os.path.realpath(config.run) == os.path.realpath(path):
        raise UserError(f"--init {config.init} is the run being trained: use another --run, or another --init")


def _read_run(
    config: Config, folder: pathlib.Path, devices: Devices, share: Callable[[str], str], own: CustomObjects
) -> TrainedSegNet:
    """Read the variables of the checkpoint that a run's result.json scores."""
    source = files.read_run(folder)
    if who := is_held(folder):
        raise UserError(f"--init {config.init} is still being trained by {who}: wait until it has ended, or stop it")
    alone = Devices(devices.local[:1], 1)
    own = own if missing("model", source.own) else build_model.NO_OBJECTS
    restored = restore(str(folder), source, "result", alone, "float32", intact=True, broadcast=share, own=own)
    which = {"newest": "the last", "best": "the best"}[restored.which]
    about = f"step {restored.meta['step']}, {which}"
    if source.has_average:
        about += ", EMA" if source.ema_decay else ", SWA"
    variables = jax.device_get(restored.variables)
    preprocessing = checkpoint_folders.preprocessing_of(restored.meta)
    return TrainedSegNet(config.init, about, source, restored.classes.names, preprocessing, variables)


def _read_own(config: Config, path: pathlib.Path) -> TrainedSegNet:
    from segnet_jax.weights.load import read_exported_segnet

    return _exported_segnet(config, read_exported_segnet(path), path)


def _exported_segnet(config: Config, found: ExportedSegNet, path: pathlib.Path) -> TrainedSegNet:
    description = found.description
    settings = config_from(description, str(path))
    classes, preprocessing = description.classes, description.preprocessing
    return TrainedSegNet(config.init, found.about, settings, classes, preprocessing, found.variables)


def _read_caffe(config: Config, path: pathlib.Path) -> TrainedSegNet:
    """Read a SegNet from a `.caffemodel`, which does not name its classes; eleven are assumed to be CamVid's."""
    from segnet_jax.weights.formats.caffe_segnet import BATCH_NORM_EPSILON
    from segnet_jax.weights.load import read_caffe_segnet

    found = read_caffe_segnet(path)
    source = read_protocol(_CAFFE_RECIPES[found.network], Config())
    source = dataclasses.replace(source, batch_norm_epsilon=BATCH_NORM_EPSILON)
    classes = CAMVID.names if found.num_classes == len(CAMVID) else None
    variables = {"params": found.params, "batch_stats": found.batch_stats}
    return TrainedSegNet(config.init, "trained by Caffe", source, classes, RAW, variables)

"""Restore a network from a run's checkpoint or from an exported folder."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.distributed.data_parallel import Devices, replicate
from segnet_jax.nn.label_bits import MAX_CLASSES
from segnet_jax.nn.segnet import SegNet
from segnet_jax.system.errors import UserError
from segnet_jax.training import batch_norm_statistics, build_model
from segnet_jax.training.checkpoint_content import OtherState, check_meta, max_checkpoint_bytes
from segnet_jax.training.checkpoint_folders import Which
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.custom_objects import CustomObjects, missing
from segnet_jax.training.experiment_check import check_experiment
from segnet_jax.training.network_source import is_exported, read_exported
from segnet_jax.training.state import variable_shapes

logger = logging.getLogger(__name__)

CheckpointChoice = Literal["result", Which]
"""Which checkpoint to load; "result" for the one that the run's result.json scores."""

BatchNormChoice = Literal["run", "running", "recompute"]
"""Which batch-norm statistics to use; "run" for those of the config's `batch_norm`."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A network restored from a checkpoint.

    Attributes:
      model: network as trained, not folded.
      variables: "params" and "batch_stats" of the network, replicated over the devices.
      meta: the checkpoint's JSON metadata.
      recomputed: precise batch-norm statistics computed after training, on the host; None if there are none.
      which: "newest" or "best".
    """

    model: SegNet
    variables: dict[str, Any]
    meta: dict[str, Any]
    recomputed: dict[str, Any] | None = None
    which: Which = "newest"

    @property
    def classes(self) -> ClassTable:
        """The classes that the network was trained on."""
        multi_label = bool(self.meta.get("multi_label"))  # of the config
        return ClassTable(tuple(self.meta["classes"]), tuple(map(tuple, self.meta["colors"])), multi_label)


def restore(
    run: str,
    config: Config,
    checkpoint: CheckpointChoice,
    devices: Devices,
    precision: str,
    use_ema: bool = True,
    intact: bool = False,
    broadcast: Callable[[str], str] = lambda text: text,
    own: CustomObjects = build_model.NO_OBJECTS,
    batch_norm: BatchNormChoice = "run",
) -> Restored:
    """Restore a network from a run's checkpoint or from an exported folder.

    An exported network has a single checkpoint, with the batch-norm statistics chosen at export.

    Args:
      run: run folder or exported folder.
      config: config of the run.
      checkpoint: checkpoint to load: "best", "newest", or "result" for the one of these that result.json scores.
      devices: devices on which the variables are placed.
      precision: dtype of activations; not "auto".
      use_ema: whether to use the EMA of the variables if the run has one.
      intact: whether to fail if the latest checkpoint is damaged, and to leave the run's folder unchanged.
      broadcast: function that returns process 0's text in every process that restores.
      own: custom objects; only the network is needed, if the run has a custom one.
      batch_norm: batch-norm statistics to use; with "recompute", stored precise statistics replace the running ones.

    Raises:
      UserError: If there is no checkpoint yet, its settings do not match the config, or it is damaged and `intact` is
        set.
      NoCheckpoint: If no checkpoint is intact, or its content is invalid.
    """
    if own.model is not None and not missing("model", config.own):
        raise UserError(f"the network of {run} was not passed from Python: omit model")
    if is_exported(run):
        return _restore_exported(run, config, checkpoint, devices, precision)
    which = checkpoint
    if checkpoint == "result":  # not always the best, because some protocols do not allow selection by score
        which = "best" if config.result_checkpoint == "best" else "newest"
    folder = pathlib.Path(run) / "checkpoints"
    max_bytes = max_checkpoint_bytes(config.width, config.has_custom_network)
    with Checkpoints(folder, devices, broadcast=broadcast, max_bytes=max_bytes) as checkpoints:
        step = checkpoints.latest_intact(which) if intact else checkpoints.latest(which)
        if step is None:
            raise UserError(f"no {which} checkpoint in {run}: training stopped before the first one was saved")
        meta = check_meta(checkpoints.read_meta(which, step), f"the {which} checkpoint of {run}")
        check_experiment(pathlib.Path(run), meta, files.read_run(run))
        _check_channels(meta, config, run)
        model = build_model.build_model(config, len(meta["classes"]), precision, own)
        optimizer, _ = build_model.build_optimizer(config, model, steps_per_epoch=1)  # only for the shapes of its state
        shapes = build_model.state_shapes(model, optimizer, meta["precision"], config.has_average)
        if missing("optimizer", config.own):  # its state has unknown shapes, and is not read
            shapes = shapes.replace(opt_state=None)
        try:
            state = checkpoints.restore(which, step, shapes)
        except OtherState as error:
            if "experiment" in meta:  # the config matches the checkpoint, so the state is invalid
                raise
            raise UserError(f"the network of {run}/config.toml does not match its checkpoint: {error}") from None
        variables = state.variables if use_ema else state.replace(ema=None).variables
        recomputed = batch_norm_statistics.load_statistics(
            folder, checkpoints.sum_of_state(which, step), variables["batch_stats"]
        )
    if state.ema is not None and not use_ema:  # precise statistics belong to the EMA
        recomputed = None
    is_precise = (config.batch_norm if batch_norm == "run" else batch_norm) == "recompute"
    if is_precise and recomputed is None:
        logger.info(
            f"the {which} checkpoint of {run} has no precise batch-norm statistics: the running statistics are used"
        )
    elif is_precise:
        variables = variables | {"batch_stats": replicate(recomputed, devices)}
    return Restored(model, variables, meta | {"multi_label": config.multi_label}, recomputed, which)


def _restore_exported(
    folder: str, config: Config, checkpoint: CheckpointChoice, devices: Devices, precision: str
) -> Restored:
    """Restore an exported network, which has a single checkpoint.

    Raises:
      UserError: If the network is damaged or does not fit its description, or another checkpoint is requested.
    """
    found = read_exported(folder)
    description = found.description
    if checkpoint not in ("result", description.checkpoint):
        raise UserError(f"{folder} contains {found.about}, not the {checkpoint} checkpoint; omit --checkpoint")
    num_classes = len(description.classes)
    weights = description.class_weights or (1.0,) * num_classes
    if len(description.colors or ()) != num_classes or len(weights) != num_classes:
        raise UserError(f"{folder} does not state the color and the weight of each class; export it again")
    model = build_model.build_model(config, num_classes, precision)
    ours, theirs = (jax.tree.map(np.shape, tree) for tree in (variable_shapes(model), found.variables))
    if ours != theirs:
        message = f"the tensors in {folder} do not fit the network that it describes; export it again"
        raise UserError(message, kind="bad-weights", file=folder)
    meta = {
        "step": description.step,
        "classes": list(description.classes),
        "colors": [list(color) for color in description.colors],
        "preprocessing": dataclasses.asdict(description.preprocessing),
        "precision": precision,
        "class_weights": list(weights),
        "multi_label": config.multi_label,
    }
    _check_channels(meta, config, folder)
    return Restored(model, replicate(found.variables, devices), meta, None, description.checkpoint or "newest")


def _check_channels(meta: dict[str, Any], config: Config, source: str) -> None:
    """Raise UserError if preprocessing and network differ in their channels, or multi-label classes are too many."""
    if config.multi_label and (count := len(meta["classes"])) > MAX_CLASSES:
        message = f"{source} has {count} classes with several per pixel, but at most {MAX_CLASSES} are possible"
        raise UserError(f"{message}: it is damaged", kind="bad-weights", file=source)
    if (count := len(meta["preprocessing"]["mean"])) != config.channels:
        message = f"{source} normalizes {count} channels, but its network has {config.channels}: it is damaged"
        raise UserError(message, kind="bad-weights", file=source)

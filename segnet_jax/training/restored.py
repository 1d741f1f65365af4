"""Restore the network of a run from one of its checkpoints."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.distributed.data_parallel import Devices, replicate
from segnet_jax.nn.segnet import SegNet
from segnet_jax.system.errors import UserError
from segnet_jax.training import batch_norm_statistics, build
from segnet_jax.training.checkpoint_content import OtherState, check_meta, max_checkpoint_bytes
from segnet_jax.training.checkpoint_folders import Which
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.experiment import check_experiment

logger = logging.getLogger(__name__)

CheckpointChoice = Literal["result", Which]
"""Which checkpoint to load; "result": the one that the run's result.json scores."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds of a network.

    Attributes:
      model: as it was trained, BatchNorm apart.
      variables: its "params" and "batch_stats", replicated over the devices.
      meta: the checkpoint's JSON.
      recomputed: "batch_stats" that were taken afresh after the training, on the host; None where there are none.
      which: of the run's checkpoints it is.
    """

    model: SegNet
    variables: dict[str, Any]
    meta: dict[str, Any]
    recomputed: dict[str, Any] | None = None
    which: Which = "newest"

    @property
    def classes(self) -> ClassTable:
        """That it was trained on."""
        return ClassTable(tuple(self.meta["classes"]), tuple(map(tuple, self.meta["colors"])))


def restore(
    run: str,
    config: Config,
    checkpoint: CheckpointChoice,
    devices: Devices,
    precision: str,
    use_ema: bool = True,
    intact: bool = False,
    share: Callable[[str], str] = lambda text: text,
) -> Restored:
    """Restores the network of a run's checkpoint, with the statistics that `--batch-norm` of the run names.

    Args:
      run: the folder.
      config: the run's; with `batch_norm` "recompute", statistics that were taken afresh replace the running ones.
      checkpoint: which checkpoint to load: "best", "newest", or "result", the one of the two that result.json scores.
      devices: where its variables are to lie.
      precision: of activations, not "auto".
      use_ema: take the average of the parameters where the run has one, not those of the step itself.
      intact: refuse a run whose latest checkpoint is damaged, and leave its folder as it is.
      share: (text of process 0) -> that text in every process that restores.

    Raises:
      UserError: there is no checkpoint yet, it is of another experiment than the config, or it is to be intact and is
        not.
      NoCheckpoint: there were some, and none is whole, or it holds what no training saves.
    """
    which = checkpoint
    if checkpoint == "result":  # a best one was chosen by its score, which not every protocol allows
        which = "best" if config.result_checkpoint == "best" else "newest"
    folder = pathlib.Path(run) / "checkpoints"
    with Checkpoints(folder, devices, share=share, most_bytes=max_checkpoint_bytes(config.width)) as checkpoints:
        step = checkpoints.latest_intact(which) if intact else checkpoints.latest(which)
        if step is None:
            raise UserError(f"no {which} checkpoint in {run}: it stopped before its first one")
        meta = check_meta(checkpoints.read_meta(which, step), f"the {which} checkpoint of {run}")
        check_experiment(pathlib.Path(run), meta, files.read_run(run))
        model = build.build_model(config, len(meta["classes"]), precision)
        optimizer, _ = build.build_optimizer(config, model, steps_per_epoch=1)  # for its state's shape alone
        shapes = build.state_shapes(model, optimizer, meta["precision"], config.ema_decay > 0)
        try:
            state = checkpoints.restore(which, step, shapes)
        except OtherState as error:
            if "experiment" in meta:  # then the config is that of the checkpoint, and the state is not
                raise
            raise UserError(f"the network of {run}/config.toml is not that of its checkpoint: {error}") from None
        variables = state.variables if use_ema else state.replace(ema=None).variables
        recomputed = batch_norm_statistics.load_statistics(folder, checkpoints.sum_of_state(which, step), variables["batch_stats"])
    if state.ema is not None and not use_ema:  # they belong to the average
        recomputed = None
    if config.batch_norm == "recompute" and recomputed is None:
        logger.info(
            f"the {which} checkpoint of {run} has no recomputed BatchNorm statistics: the running ones are used"
        )
    elif config.batch_norm == "recompute":
        variables = variables | {"batch_stats": replicate(recomputed, devices)}
    return Restored(model, variables, meta, recomputed, which)

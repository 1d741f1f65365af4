"""Evaluate a restored network, or an average of networks, on the whole images or tiles of a split."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.data.dataset import Dataset, Split
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.distributed.data_parallel import Devices, replicate
from segnet_jax.inference.averaging import AveragedNetwork, Views, average
from segnet_jax.inference.network import Network, folded, unfolded
from segnet_jax.inference.predictor import Predictor, Sizing
from segnet_jax.inference.sampled_evaluation import SampledScores, score_samples
from segnet_jax.inference.stored_temperature import FittedTemperature, calibrate
from segnet_jax.inference.tiled_evaluation import evaluate_tiles
from segnet_jax.metrics.boundary import BoundaryF1
from segnet_jax.reporting.evaluations import Images
from segnet_jax.system.console import bar
from segnet_jax.system.errors import UserError
from segnet_jax.training import build_model, build_steps, checkpoint_folders
from segnet_jax.training.choose_devices import device_shard
from segnet_jax.training.evaluation import Evaluation, evaluate_boundaries
from segnet_jax.training.restore_network import Restored
from segnet_jax.training.step_inputs import Input, choose_placement, evaluation_input


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluatedNetwork:
    """A restored network, and the split to evaluate it on.

    Attributes:
      config: config of the run, with this evaluation's overrides.
      devices: devices to compute on.
      dataset: dataset that the split belongs to.
      split: split to evaluate.
      restored: checkpoint with running BatchNorm statistics.
      others: other networks to average with.
      views: views of each image to average over.
      sizing: sizes of the tiles, if any.
    """

    config: Config
    devices: Devices
    dataset: Dataset
    split: Split
    restored: Restored
    others: tuple[Network, ...]
    views: Views
    sizing: Sizing

    def network(self, variables: dict[str, Any]) -> Network:
        """Return the network with these variables, averaged over views and other networks."""
        own = unfolded(dataclasses.replace(self.restored, variables=variables), self.config)
        return average([own, *self.others], self.views)


@dataclasses.dataclass(frozen=True, eq=False)
class SplitScores:
    """Scores of a network on a split.

    Attributes:
      evaluation: evaluation with the chosen BatchNorm statistics.
      boundary: boundary F1; None if it was not requested.
      confusions: confusion matrices, int64 [C,C], under "running" and, if recomputed, under "recompute".
      by_image: confusion matrix of each image; None if there were too many to store.
      sampled: scores of the dropout samples; None if they were not requested.
      temperature: fitted temperature; None if it was not requested.
      seconds: time of the first evaluation, without compilation but with waits for boundary matching.
    """

    evaluation: Evaluation
    boundary: BoundaryF1 | None
    confusions: dict[str, np.ndarray]
    by_image: Images | None
    sampled: SampledScores | None
    temperature: FittedTemperature | None
    seconds: float


Scored = tuple[Evaluation, BoundaryF1 | None]


def evaluate_split(
    subject: EvaluatedNetwork,
    samples: CachedSplit | None,
    *,
    boundary: bool,
    num_samples: int = 0,
    calibrates: bool = False,
    recompute: Callable[[], dict[str, Any]] | None = None,
) -> SplitScores:
    """Evaluate a network on every image of a split.

    Args:
      subject: the network and the split.
      samples: samples of the split at the training size; None with tiles, which read the images at their native size.
      boundary: whether to compute boundary F1.
      num_samples: number of dropout samples to score in addition; 0 for none.
      calibrates: whether to fit a temperature.
      recompute: function that returns precise BatchNorm statistics, with which the network is evaluated in addition.

    Raises:
      UserError: If samples or a temperature are requested where a pixel may have several classes.
    """
    if subject.dataset.classes.multi_label and (num_samples or calibrates):
        raise UserError("--calibrate and --samples are for one class per pixel, but the run has several: remove them")
    config, devices, restored = subject.config, subject.devices, subject.restored
    shard = device_shard(devices, config.batch_size_per_device)
    source = None
    if samples is not None:
        source = evaluation_input(choose_placement(config.input, devices, samples), samples, shard, devices)
        evaluate_with = _of_whole_images(subject, source, samples, boundary)
    else:
        evaluate_with = partial(_evaluate_tiles, subject, boundary)
    variables = restored.variables
    evaluation, boundary_f1 = evaluate_with(variables)
    seconds = evaluation.seconds
    confusions = {"running": evaluation.confusion}
    if recompute is not None:
        batch_stats = restored.recomputed or recompute()
        variables = variables | {"batch_stats": replicate(batch_stats, devices)}
        evaluation, boundary_f1 = evaluate_with(variables)
        confusions["recompute"] = evaluation.confusion
    sampled = temperature = None
    if num_samples:
        network = folded(dataclasses.replace(restored, variables=variables), config)
        sampled = score_samples(network, source, samples, shard, devices, num_samples, config.seed)
    if calibrates:
        temperature = calibrate(subject.network(variables), source, devices)
    by_image = Images(subject.split.names, evaluation.confusions) if evaluation.confusions is not None else None
    return SplitScores(evaluation, boundary_f1, confusions, by_image, sampled, temperature, seconds)


def _of_whole_images(
    subject: EvaluatedNetwork, source: Input, samples: CachedSplit, boundary: bool
) -> Callable[[dict[str, Any]], Scored]:
    """Return a function that evaluates the split with the network's variables and is compiled only once."""
    config, restored, devices = subject.config, subject.restored, subject.devices
    settings = build_model.step_settings(
        config,
        restored.model,
        checkpoint_folders.class_weights_of(restored.meta),
        checkpoint_folders.preprocessing_of(restored.meta),
    )
    averaged = subject.network(restored.variables)
    forward = averaged.forward if isinstance(averaged, AveragedNetwork) else None
    shard = device_shard(devices, config.batch_size_per_device)
    score = build_steps.build_evaluator(source, len(subject.split), shard, devices, settings, forward)

    def evaluate_with(variables: dict[str, Any]) -> Scored:
        run = partial(score, subject.network(variables).variables)
        classes = subject.dataset.classes
        return evaluate_boundaries(run, samples, len(classes), classes.multi_label) if boundary else (run(), None)

    return evaluate_with


def _evaluate_tiles(subject: EvaluatedNetwork, boundary: bool, variables: dict[str, Any]) -> Scored:
    per_device = subject.config.batch_size_per_device
    predictor = Predictor(subject.network(variables), subject.devices, per_device, subject.sizing)
    with bar("evaluating", len(subject.split)) as advance:
        return evaluate_tiles(predictor, subject.split, len(subject.dataset.classes), boundary, advance)

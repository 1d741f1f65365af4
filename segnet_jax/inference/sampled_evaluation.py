"""Evaluate the mean prediction of dropout samples, and compare it with the network without dropout."""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segnet_jax.data.dataset import evenly_spaced
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.distributed.data_parallel import AXIS, AheadOfTime, Devices, parallel_eval_step, prefetch, replicate
from segnet_jax.inference.network import Network
from segnet_jax.inference.sampling import UNCERTAINTIES, image_keys, maxima, normalized, sample
from segnet_jax.metrics.calibration import Calibration, accuracy_over_coverage, calibration, count_in_bins
from segnet_jax.metrics.confusion import confusion_matrix, scores
from segnet_jax.metrics.uncertainty import entropy, uncertainty
from segnet_jax.reporting.evaluations import write_uncertainty
from segnet_jax.reporting.tables import percent
from segnet_jax.system.console import echo
from segnet_jax.training.build_steps import NUM_PICTURES
from segnet_jax.training.step_inputs import Input


@dataclass(frozen=True)
class SampledScores:
    """Scores of a split with and without dropout sampling.

    Attributes:
      num_samples: T.
      confusion: confusion matrix of the mean prediction, int64 [C,C].
      plain_confusion: confusion matrix of the network without dropout, int64 [C,C].
      counts: name -> pixel counts of `count_in_bins`: "confidence" and each uncertainty for the mean prediction,
        "plain_confidence" and "plain_entropy" for the network without dropout.
      maps: image index -> "prediction" and the uncertainty maps, uint8 [H,W]; 255 is the largest possible uncertainty.
    """

    num_samples: int
    confusion: np.ndarray
    plain_confusion: np.ndarray
    counts: dict[str, dict[str, np.ndarray]]
    maps: dict[int, dict[str, np.ndarray]]

    @property
    def calibration(self) -> Calibration:
        """Calibration of the mean prediction."""
        return calibration(self.counts["confidence"])

    @property
    def plain_calibration(self) -> Calibration:
        """Calibration of the network without dropout."""
        return calibration(self.counts["plain_confidence"])

    def as_json(self) -> dict[str, Any]:
        """Return everything except the maps, JSON-serializable."""
        counts = {name: self.counts[name] for name in UNCERTAINTIES}
        plain_counts = {"entropy": self.counts["plain_entropy"]}
        return {
            "num_samples": self.num_samples,
            "mean": _scores_json(self.confusion, self.calibration, counts),
            "plain": _scores_json(self.plain_confusion, self.plain_calibration, plain_counts),
        }

    def report(
        self, run: str, about: dict[str, Any], names: Sequence[str], samples: CachedSplit | None, classes: ClassTable
    ) -> None:
        """Print the scores with and without dropout, and store them with the maps in the run folder for its report.

        Args:
          run: run folder.
          about: split and checkpoint of the scores, JSON-serializable.
          names: names of the samples.
          samples: samples, to store their images; None to store no photographs.
          classes: class names and colors.
        """
        data = self.as_json()
        for which, name in (("mean", f"mean of {self.num_samples} samples"), ("plain", "without dropout")):
            one, coverage = data[which], data[which]["accuracy_over_coverage"]["entropy"]
            echo(
                f"{name}: mIoU {percent(one['miou'])}, global accuracy {percent(one['global_accuracy'])}, calibration "
                f"error {percent(one['calibration_error'])}; accuracy of the 90 % and 50 % most certain pixels: "
                f"{percent(coverage['0.9'])} and {percent(coverage['0.5'])}"
            )
        pictures = [
            (names[i], samples.read(i)[0] if samples is not None else None, maps)
            for i, maps in sorted(self.maps.items())
        ]
        write_uncertainty(pathlib.Path(run), about | data, pictures, classes)


def score_samples(
    network: Network,
    source: Input,
    samples: CachedSplit,
    shard: tf_data.BatchShard,
    devices: Devices,
    num_samples: int,
    seed: int,
) -> SampledScores:
    """Score the mean prediction of dropout samples on every image of a split.

    Args:
      network: network with dropout.
      source: input of the split's batches.
      samples: samples of the split.
      shard: this process's shard of each batch; does not affect the scores.
      devices: devices to compute on.
      num_samples: T, all drawn for an image in one call.
      seed: random seed of dropout.
    """
    num_records, wanted = len(samples), evenly_spaced(NUM_PICTURES, len(samples))
    step = partial(
        _score,
        make_batch=source.make_batch,
        forward=network.forward,
        num_classes=len(network.classes),
        num_samples=num_samples,
        seed=seed,
    )
    mapped = parallel_eval_step(step, devices, source.store_axis)
    score = AheadOfTime(mapped, f"{num_samples} samples of the network", devices, source.store)
    variables = replicate(network.variables, devices)
    steps = range(tf_data.num_evaluation_steps(num_records, shard))
    indices = [tf_data.evaluation_indices(num_records, shard, number) for number in steps]
    batches = (
        {"index": index.astype(np.int32), "batch": batch} for index, batch in zip(indices, source.inputs(), strict=True)
    )
    total: dict[str, Any] = {}
    maps: dict[int, dict[str, np.ndarray]] = {}
    for index, inputs in zip(indices, prefetch(batches, devices), strict=True):
        sums, batch_maps = score(variables, inputs)
        sums = jax.tree.map(lambda counts: np.asarray(counts, np.int64), sums)
        total = jax.tree.map(np.add, total, sums) if total else sums
        for place in zip(*np.nonzero(np.isin(index, wanted)), strict=True):
            maps[int(index[place])] = {name: np.asarray(values[place]) for name, values in batch_maps.items()}
    return SampledScores(num_samples, total.pop("confusion"), total.pop("plain_confusion"), total, maps)


def _score(variables, inputs, store, *, make_batch, forward, num_classes, num_samples, seed):
    """Compute the sums and maps of one batch on one device."""
    batch = lax.optimization_barrier(make_batch(inputs["batch"], store))
    image, label = batch["image"], batch["label"]
    plain = jax.nn.softmax(forward(variables, image), axis=-1)
    keys = image_keys(seed, inputs["index"], num_samples)
    found = uncertainty(sample(lambda images, keys: forward(variables, images, keys), image, keys))
    prediction, plain_prediction = (each.argmax(axis=-1).astype(jnp.uint8) for each in (found.mean, plain))
    sums = {
        "confusion": confusion_matrix(label, prediction, num_classes),
        "plain_confusion": confusion_matrix(label, plain_prediction, num_classes),
        "confidence": count_in_bins(label, prediction, found.mean.max(axis=-1), 1.0),
        "plain_confidence": count_in_bins(label, plain_prediction, plain.max(axis=-1), 1.0),
        "plain_entropy": count_in_bins(label, plain_prediction, entropy(plain), maxima(num_classes)["entropy"]),
    }
    maps = {"prediction": prediction}
    for name, values in zip(UNCERTAINTIES, jnp.moveaxis(normalized(found, num_classes), -1, 0), strict=True):
        sums[name] = count_in_bins(label, prediction, values, 1.0)
        maps[name] = jnp.round(255 * values).astype(jnp.uint8)
    return lax.psum(sums, AXIS), maps


def _scores_json(
    confusion: np.ndarray, calibrated: Calibration, uncertainty_counts: dict[str, dict[str, np.ndarray]]
) -> dict[str, Any]:
    found = scores(confusion)
    return {
        "miou": found.miou,
        "mean_accuracy": found.mean_accuracy,
        "global_accuracy": found.global_accuracy,
        "calibration_error": calibrated.error,
        "reliability": {
            "pixels": calibrated.pixels,
            "confidence": calibrated.confidence,
            "accuracy": calibrated.accuracy,
        },
        "accuracy_over_coverage": {
            name: {f"{coverage:g}": accuracy for coverage, accuracy in accuracy_over_coverage(counts).items()}
            for name, counts in uncertainty_counts.items()
        },
        "confusion": confusion,
    }

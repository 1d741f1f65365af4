"""Scores of what many samples of a network say together, beside those of the network without dropout."""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.distributed.data_parallel import AXIS, AheadOfTime, Devices, parallel_eval_step, prefetch, replicate
from segnet_jax.inference.network import Network
from segnet_jax.inference.sampling import MEASURES, image_keys, largest, measured, sample
from segnet_jax.metrics.calibration import Calibration, accuracy_over_coverage, calibration, count_in_bins
from segnet_jax.metrics.confusion import confusion_matrix, scores
from segnet_jax.metrics.uncertainty import entropy, uncertainty
from segnet_jax.reporting.evaluations import write_uncertainty
from segnet_jax.reporting.tables import percent
from segnet_jax.system.console import echo
from segnet_jax.training.build_steps import picture_indices
from segnet_jax.training.inputs import Input


@dataclass(frozen=True)
class SampledScores:
    """What one pass over a split found.

    Attributes:
      num_samples: T.
      confusion: int64 [C,C], of the mean prediction.
      plain_confusion: int64 [C,C], of the network without dropout.
      counts: name -> counts in bins, of `count_in_bins`: the mean prediction by "confidence" and by each measure of
        uncertainty, and the plain one by "plain_confidence" and "plain_entropy".
      maps: index -> "prediction" uint8 [H,W], and each measure's map, uint8 [H,W], 255 for its largest value.
    """

    num_samples: int
    confusion: np.ndarray
    plain_confusion: np.ndarray
    counts: dict[str, dict[str, np.ndarray]]
    maps: dict[int, dict[str, np.ndarray]]

    @property
    def calibration(self) -> Calibration:
        """Of the mean prediction."""
        return calibration(self.counts["confidence"])

    @property
    def plain_calibration(self) -> Calibration:
        """Of the network without dropout."""
        return calibration(self.counts["plain_confidence"])

    def as_json(self) -> dict[str, Any]:
        """All of it but the maps."""
        return {
            "num_samples": self.num_samples,
            "mean": _told(self.confusion, self.calibration, {name: self.counts[name] for name in MEASURES}),
            "plain": _told(self.plain_confusion, self.plain_calibration, {"entropy": self.counts["plain_entropy"]}),
        }

    def show(
        self, run: str, on: dict[str, Any], names: Sequence[str], samples: CachedSplit | None, classes: ClassTable
    ) -> None:
        """Prints the scores beside those without dropout, and keeps them and the maps for the run's report.

        Args:
          run: the folder.
          on: what they are of, as JSON.
          names: of the records.
          samples: for their images; None where those must not be passed on.
          classes: names and colours.
        """
        told = self.as_json()
        for which, name in (("mean", f"mean of {self.num_samples} samples"), ("plain", "without dropout")):
            one, coverage = told[which], told[which]["accuracy_over_coverage"]["entropy"]
            echo(
                f"{name}: mIoU {percent(one['miou'])}, global accuracy {percent(one['global_accuracy'])}, calibration "
                f"error {percent(one['calibration_error'])}; right of the surest 90 % and 50 % of all pixels: "
                f"{percent(coverage['0.9'])} and {percent(coverage['0.5'])}"
            )
        pictures = [
            (names[i], samples.read(i)[0] if samples is not None else None, maps)
            for i, maps in sorted(self.maps.items())
        ]
        write_uncertainty(pathlib.Path(run), on | told, pictures, classes)


def score_samples(
    network: Network,
    source: Input,
    samples: CachedSplit,
    share: tf_data.BatchShard,
    devices: Devices,
    num_samples: int,
    seed: int,
) -> SampledScores:
    """Draws samples of every image of a split, and scores what they say together.

    Args:
      network: with dropout.
      source: of the split's batches.
      samples: of the split.
      share: this process's part of each batch; the scores do not depend on it.
      devices: to compute on.
      num_samples: T, all of an image in one call.
      seed: of dropout.
    """
    num_records, wanted = len(samples), picture_indices(len(samples))
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
    steps = range(tf_data.num_evaluation_steps(num_records, share))
    indices = [tf_data.evaluation_indices(num_records, share, number) for number in steps]
    batches = (
        {"index": index.astype(np.int32), "batch": batch} for index, batch in zip(indices, source.inputs(), strict=True)
    )
    total: dict[str, Any] = {}
    maps: dict[int, dict[str, np.ndarray]] = {}
    for index, inputs in zip(indices, prefetch(batches, devices), strict=True):
        sums, seen = score(variables, inputs)
        sums = jax.tree.map(lambda counts: np.asarray(counts, np.int64), sums)
        total = jax.tree.map(np.add, total, sums) if total else sums
        for place in zip(*np.nonzero(np.isin(index, wanted)), strict=True):
            maps[int(index[place])] = {name: np.asarray(values[place]) for name, values in seen.items()}
    return SampledScores(num_samples, total.pop("confusion"), total.pop("plain_confusion"), total, maps)


def _score(variables, inputs, store, *, make_batch, forward, num_classes, num_samples, seed):
    """One batch, as one device sees it."""
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
        "plain_entropy": count_in_bins(label, plain_prediction, entropy(plain), largest(num_classes)["entropy"]),
    }
    maps = {"prediction": prediction}
    for name, share in zip(MEASURES, jnp.moveaxis(measured(found, num_classes), -1, 0), strict=True):
        sums[name] = count_in_bins(label, prediction, share, 1.0)
        maps[name] = jnp.round(255 * share).astype(jnp.uint8)
    return lax.psum(sums, AXIS), maps


def _told(confusion: np.ndarray, calibrated: Calibration, measured: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
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
            for name, counts in measured.items()
        },
        "confusion": confusion,
    }

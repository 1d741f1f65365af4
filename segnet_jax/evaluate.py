"""Scores a trained run on a split: `python -m segnet_jax.evaluate --help`."""

import dataclasses
import pathlib
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import tyro

from segnet_jax import assembly, runs
from segnet_jax.command import run_command
from segnet_jax.errors import UserError
from segnet_jax.files import atomic_write_json
from segnet_jax.flags import parse_flags
from segnet_jax.inputs import choose_place, evaluation_input
from segnet_jax.metrics.confusion import scores
from segnet_jax.network import folded, restore
from segnet_jax.prediction.sampling import check_samples
from segnet_jax.reporting.figures import prediction_pictures
from segnet_jax.reporting.kept import keep_uncertainty
from segnet_jax.reporting.run_folder import result
from segnet_jax.reporting.tables import percent, print_table
from segnet_jax.sampled_scores import SampledScores, score_samples
from segnet_jax.setting import open_data, start_devices

DESCRIPTION = """Scores a run's checkpoint on every image of a split.

Example:  python -m segnet_jax.evaluate runs/demo-1 --split val --json scores.json"""


@dataclass(frozen=True)
class Options:
    """What to score."""

    run: Annotated[str, tyro.conf.Positional]  # folder of the run
    split: Literal["train", "val", "test"] = "val"  # which images
    data: str = ""  # where they are, if not where the run was trained
    checkpoint: Literal["best", "newest"] = "best"  # of the run
    devices: str = "all"  # how many devices: a number or "all"
    fake_devices: int = 0  # pretend that the CPU is so many devices
    batch_size_per_device: int = 4  # images a device takes at once; the scores do not depend on it
    json: str = ""  # file to write the result to
    pictures: str = ""  # folder for a picture of six records and their predictions
    samples: int = 0  # also score the mean of so many samples under dropout (Bayesian SegNet), with its uncertainty
    masks_only: bool = False  # leave the photographs out of it, where they must not be passed on


def main() -> int:
    """The command."""
    return evaluate(parse_flags(Options, sys.argv[1:], prog="segnet_jax.evaluate", description=DESCRIPTION))


def evaluate(options: Options) -> int:
    """Evaluates, prints the table, and writes the JSON if asked; returns the exit code.

    Raises:
      UserError: for a missing run or split, or data whose classes are not the run's.
    """
    config = dataclasses.replace(
        runs.read_run(options.run),
        devices=options.devices,
        fake_devices=options.fake_devices,
        batch_size_per_device=options.batch_size_per_device,
        **({"data": options.data} if options.data else {}),
    )
    say = partial(print, file=sys.stderr)
    devices, precision = start_devices(config, say)
    data_set = open_data(config)
    split = data_set.splits.get(options.split)
    if not split:
        raise UserError(f"{data_set.name} has no {options.split} images, only {', '.join(data_set.splits)}")
    restored = restore(options.run, config, options.checkpoint, devices, precision, say)
    meta = restored.meta
    if meta["classes"] != list(data_set.classes.names):
        raise UserError(f"{options.run} was trained on other classes than {data_set.name} has")
    network = None
    if options.samples:
        network = folded(restored, config)
        check_samples(network, options.samples, options.run)
    records = assembly.decode(split, config, f"reading {options.split} images", say)
    share = assembly.device_share(devices, config.batch_size_per_device)
    source = evaluation_input(choose_place(config.input, devices, records), records, share, devices)
    score = assembly.build_evaluator(
        source,
        len(split),
        share,
        devices,
        say,
        model=restored.model,
        class_weights=jnp.asarray(runs.class_weights_of(meta)),
        preprocessing=runs.preprocessing_of(meta),
    )
    start = time.monotonic()
    found = score(restored.variables)
    seconds = time.monotonic() - start
    if devices.is_writer:
        print_table(scores(found.confusion), data_set.classes)
        print(f"{len(split)} {options.split} images, {options.checkpoint} checkpoint (step {meta['step']})")
    sampled = None
    if network is not None:
        chosen = assembly.picture_indices(len(split))
        sampled = score_samples(
            network, source, len(split), share, devices, options.samples, seed=config.seed, wanted=chosen, say=say
        )
    if sampled is not None and devices.is_writer:
        _tell_samples(sampled)
        pictures = [
            (split.names[i], None if options.masks_only else records.read(i)[0], maps)
            for i, maps in sorted(sampled.maps.items())
        ]
        told = {"split": options.split, "num_images": len(split), "step": meta["step"]} | sampled.as_json()
        keep_uncertainty(pathlib.Path(options.run), told, pictures, data_set.classes)
    if devices.is_writer and options.pictures:
        chosen = sorted(found.predictions)
        images, labels = zip(*map(records.read, chosen), strict=True)
        drawn = prediction_pictures(
            None if options.masks_only else np.stack(images),
            np.stack(labels),
            np.stack([found.predictions[index] for index in chosen]),
            [split.names[index] for index in chosen],
            data_set.classes,
            options.pictures,
            meta["step"],
        )
        print(f"drew {drawn}")
    if devices.is_writer and options.json:
        summary = result(
            scores(found.confusion),
            data_set.classes,
            protocol=config.protocol or "custom",
            split=options.split,
            num_images=len(split),
            seconds=seconds,
            images_per_second=len(split) / seconds,
            device=str(devices),
            seed=config.seed,
        )
        extra = {"checkpoint": options.checkpoint, "step": meta["step"], "loss": found.loss, "precision": precision}
        drawn = {"samples": sampled.as_json()} if sampled is not None else {}
        atomic_write_json(options.json, summary | extra | {"confusion": found.confusion} | drawn)
    return 0


def _tell_samples(sampled: SampledScores) -> None:
    """Prints what the samples say together, beside the network without dropout."""
    told = sampled.as_json()
    for name, which in (("mean", f"mean of {sampled.num_samples} samples"), ("plain", "without dropout")):
        one = told[name]
        coverage = one["accuracy_over_coverage"]["entropy"]
        print(
            f"{which}: mIoU {percent(one['miou'])}, global accuracy {percent(one['global_accuracy'])}, calibration "
            f"error {percent(one['calibration_error'])}; right of the surest 90 % and 50 % of all pixels: "
            f"{percent(coverage['0.9'])} and {percent(coverage['0.5'])}"
        )


if __name__ == "__main__":
    run_command(main)

"""Scores a trained run on a split: `python -m segnet_jax.evaluate --help`."""

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro

from segnet_jax import assembly, runs
from segnet_jax.command import run_command
from segnet_jax.config import Config
from segnet_jax.datasets.labels import ClassTable
from segnet_jax.datasets.records import DataSet, Split
from segnet_jax.delineation import evaluate_boundaries
from segnet_jax.errors import UserError
from segnet_jax.files import atomic_write_json
from segnet_jax.flags import parse_flags
from segnet_jax.inputs import choose_place, evaluation_input
from segnet_jax.metrics.boundary import BoundaryF1
from segnet_jax.metrics.confusion import scores
from segnet_jax.network import Restored, folded, restore
from segnet_jax.pipeline.decoded import Records
from segnet_jax.prediction.sampling import check_samples
from segnet_jax.recomputing import recompute
from segnet_jax.reporting.bar import bar
from segnet_jax.reporting.figures import prediction_pictures
from segnet_jax.reporting.kept import Images, packed
from segnet_jax.reporting.run_folder import result
from segnet_jax.reporting.tables import print_sequences, print_table
from segnet_jax.results import by_statistics, of_images, recipe
from segnet_jax.sampled_scores import score_samples
from segnet_jax.setting import open_data, start_devices
from segnet_jax.training.evaluation import Evaluation
from segnet_jax.training.parallel import Devices, replicate

DESCRIPTION = """Scores a run's checkpoint on every image of a split.

Example:  python -m segnet_jax.evaluate runs/demo-1 --split val --json scores.json"""


@dataclass(frozen=True)
class Options:
    """What to score."""

    run: Annotated[str, tyro.conf.Positional]  # folder of the run
    split: Literal["train", "val", "test"] = "val"  # which images
    data: str = ""  # where they are, if not where the run was trained
    checkpoint: Literal["best", "newest"] = "best"  # of the run
    batch_norm: Literal["run", "running", "recompute"] = "run"  # whose statistics; recompute: of the run's data
    averaged: bool = True  # take the run's averaged parameters where it has such, not those of the step itself
    samples: int = 0  # also score the mean of so many samples under dropout (Bayesian SegNet), with its uncertainty
    devices: str = "all"  # how many devices: a number or "all"
    fake_devices: int = 0  # pretend that the CPU is so many devices
    batch_size_per_device: int = 4  # images a device takes at once; the scores do not depend on it
    boundary: bool = True  # score boundary F1 too, whose pairing takes the host some 0.05 s an image of 360x480
    json: str = ""  # file to write the result to
    pictures: str = ""  # folder for a picture of six records and their predictions
    masks_only: bool = False  # leave the photographs out of it, where they must not be passed on


def main() -> int:
    """The command."""
    return evaluate(parse_flags(Options, sys.argv[1:], prog="segnet_jax.evaluate", description=DESCRIPTION))


def evaluate(options: Options) -> int:
    """Evaluates, prints the table, and writes the JSON if asked; returns the exit code.

    Raises:
      UserError: for a missing run or split, or data whose classes are not the run's.
    """
    trained = runs.read_run(options.run)
    rule = trained.batch_norm if options.batch_norm == "run" else options.batch_norm
    config = dataclasses.replace(
        trained,
        batch_norm="running",  # both are scored
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
    restored = restore(options.run, config, options.checkpoint, devices, precision, say, options.averaged)
    meta = restored.meta
    if meta["classes"] != list(data_set.classes.names):
        raise UserError(f"{options.run} was trained on other classes than {data_set.name} has")
    if rule == "recompute" and "converted_from" in meta:
        raise UserError(f"{options.run} was converted: its statistics lie in BatchNorm's scale and shift, for good")
    if options.samples:
        check_samples(restored.model.dropout, options.samples, options.run)
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

    def scored_under(variables: dict) -> tuple[Evaluation, BoundaryF1 | None]:
        run = partial(score, variables)
        return evaluate_boundaries(run, records, len(data_set.classes)) if options.boundary else (run(), None)

    start = time.monotonic()
    found, boundary = scored_under(restored.variables)
    seconds = time.monotonic() - start
    confusions = {"running": found.confusion}
    if rule == "recompute":
        batch_stats = restored.recomputed or _recompute(options.run, trained, restored, data_set, devices, say)
        variables = restored.variables | {"batch_stats": replicate(batch_stats, devices)}
        restored = dataclasses.replace(restored, variables=variables)
        found, boundary = scored_under(variables)
        confusions["recompute"] = found.confusion
    sampled = None
    if options.samples:
        network = folded(restored, config)
        sampled = score_samples(network, source, records, share, devices, options.samples, config.seed, say)
    if not devices.is_writer:
        return 0
    by_image = Images(split.names, found.confusions) if found.confusions is not None else None
    told = of_images(by_image)
    print_table(scores(found.confusion), data_set.classes, interval=told["interval"], boundary=boundary)
    if len(told.get("sequences", {})) > 1:
        print_sequences(told["sequences"])
    print(f"{len(split)} {options.split} images, {options.checkpoint} checkpoint (step {meta['step']})")
    if rule == "recompute":
        mious = [f"{scores(confusion).miou:.4f}" for confusion in confusions.values()]
        print(f"BatchNorm's statistics recomputed: mIoU {mious[1]}; with the running ones: {mious[0]}")
    photographs = None if options.masks_only else records
    if sampled:
        on = {"split": options.split, "num_images": len(split), "step": meta["step"]}
        sampled.show(options.run, on, split.names, photographs, data_set.classes)
    if options.pictures:
        _draw(found, split, records, options, data_set.classes, meta["step"])
    if options.json:
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
            boundary_f1=boundary,
        )
        summary |= {"checkpoint": options.checkpoint, "step": meta["step"], "loss": found.loss, "precision": precision}
        summary |= by_statistics(confusions) | {"confusion": found.confusion}
        summary |= recipe(trained, data_set.name, meta.get("global_batch_size")) | told
        summary |= {"image_size": config.image_size, "images": packed(by_image)}
        atomic_write_json(options.json, summary | ({"samples": sampled.as_json()} if sampled else {}))
    return 0


def _draw(found: Evaluation, split: Split, records: Records, options: Options, classes: ClassTable, step: int) -> None:
    """The pictures that `--pictures` asks for."""
    chosen = sorted(found.predictions)
    photographs, labels = zip(*map(records.read, chosen), strict=True)
    drawn = prediction_pictures(
        None if options.masks_only else np.stack(photographs),
        np.stack(labels),
        np.stack([found.predictions[index] for index in chosen]),
        [split.names[index] for index in chosen],
        classes,
        options.pictures,
        step,
    )
    print(f"drew {drawn}")


def _recompute(
    run: str, trained: Config, restored: Restored, data_set: DataSet, devices: Devices, say: Callable[[str], None]
) -> dict[str, Any]:
    """BatchNorm's statistics of a run's network over the images that it was trained on."""
    known = restored.meta["data"]["train"]
    split = data_set.splits["train"]
    if split.fingerprint != known:  # scored on other data
        split = open_data(trained).splits["train"]
    if split.fingerprint != known:
        say(f"warning: the training images of {trained.data} are not those that {run} was trained on")
    records = assembly.decode(split, trained, "reading train images", say)
    preprocessing = runs.preprocessing_of(restored.meta)
    size = restored.meta["global_batch_size"]
    with bar("recomputing BatchNorm", len(split)) as advance:
        network = (restored.model, restored.variables, records, preprocessing)
        return recompute(trained, size, *network, devices, advance)


if __name__ == "__main__":
    run_command(main)

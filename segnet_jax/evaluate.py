"""Scores a trained run on a split: `python -m segnet_jax.evaluate --help`."""

import dataclasses
import logging
import os
import sys
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_flags
from segnet_jax.data.dataset import Dataset, Split
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.distributed.data_parallel import Devices, replicate
from segnet_jax.inference.network import folded
from segnet_jax.inference.sampled_evaluation import SampledScores, score_samples
from segnet_jax.inference.sampling import check_samples
from segnet_jax.metrics.boundary import BoundaryF1
from segnet_jax.metrics.confusion import scores
from segnet_jax.reporting.environment import result
from segnet_jax.reporting.evaluations import Images, encode_images
from segnet_jax.reporting.figures import check_pictures, prediction_pictures
from segnet_jax.reporting.tables import print_sequences, print_table
from segnet_jax.runs import run_folder
from segnet_jax.runs.dataset import decode, open_data
from segnet_jax.runs.out_of_memory import check_memory, explain_out_of_memory
from segnet_jax.runs.result import by_statistics, of_images, recipe
from segnet_jax.system.command import run_command
from segnet_jax.system.console import bar, echo
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import check_place, write_result
from segnet_jax.training import build, build_steps, checkpoint_folders
from segnet_jax.training.batch_norm_statistics import recompute
from segnet_jax.training.devices import device_shard, start_devices
from segnet_jax.training.evaluation import Evaluation, evaluate_boundaries
from segnet_jax.training.inputs import choose_placement, evaluation_input
from segnet_jax.training.restored import Asked, Restored, restore

logger = logging.getLogger(__name__)

DESCRIPTION = """Scores a run's checkpoint on every image of a split.

Example:  python -m segnet_jax.evaluate runs/demo-1 --split val --json scores.json"""


@dataclass(frozen=True)
class Options:
    """What to score."""

    run: Annotated[str, tyro.conf.Positional]  # folder of the run
    split: Literal["train", "val", "test"] = "val"  # which images
    data: str = ""  # where they are, if not where the run was trained
    checkpoint: Asked = "result"  # of the run; result: the one that its result is of
    batch_norm: Literal["run", "running", "recompute"] = "run"  # whose statistics; recompute: of the run's data
    ema: bool = True  # take the run's averaged parameters where it has such, not those of the step itself
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


@dataclass(frozen=True, eq=False)
class Subject:
    """What is scored.

    Attributes:
      options: of the command.
      trained: the run's config.
      config: that config as it is scored here.
      devices: to compute on.
      precision: of activations.
      dataset: whose split is scored.
      split: that.
      restored: the network, with its running statistics.
      recomputes: whether the scores that count are those under recomputed statistics.
    """

    options: Options
    trained: Config
    config: Config
    devices: Devices
    precision: str
    dataset: Dataset
    split: Split
    restored: Restored
    recomputes: bool


@dataclass(frozen=True, eq=False)
class Found:
    """Its scores.

    Attributes:
      evaluation: under the statistics that count.
      boundary: boundary F1, if it was asked for.
      confusions: "running" and, where they are recomputed, "recompute" -> int64 [C,C].
      by_image: the confusion matrix of each image, where they were kept.
      sampled: the scores of dropout's samples, if they were asked for.
      seconds: that the first evaluation took, without compiling; pairing boundaries may hold it up.
    """

    evaluation: Evaluation
    boundary: BoundaryF1 | None
    confusions: dict[str, np.ndarray]
    by_image: Images | None
    sampled: SampledScores | None
    seconds: float


def evaluate(options: Options) -> int:
    """Evaluates, prints the table, and writes the JSON if asked; returns the exit code.

    Raises:
      UserError: for a missing run or split, data whose classes are not the run's, or what cannot be written.
      OutOfMemory: a batch does not fit.
    """
    check_place("json", options.json)
    if options.pictures and os.path.lexists(options.pictures) and not os.path.isdir(options.pictures):
        raise UserError(f"--pictures {options.pictures} is a file: name a folder")
    subject = _open(options)
    if options.pictures:
        check_pictures(options.pictures, subject.restored.meta["step"])
    samples = decode(subject.split, subject.config, f"reading {options.split} images")
    with explain_out_of_memory(subject.config, subject.devices, flags=Options):
        found = _score(subject, samples)
    if not subject.devices.is_writer:
        return 0
    told = of_images(found.by_image)
    _print(subject, found, told)
    try:
        if options.json:
            write_result(options.json, _summary(subject, found) | told)
        if found.sampled:
            on = {"split": options.split, "num_images": len(subject.split), "step": subject.restored.meta["step"]}
            photographs = None if options.masks_only else samples
            found.sampled.show(options.run, on, subject.split.names, photographs, subject.dataset.classes)
        if options.pictures:
            _draw(subject, found, samples)
    except OSError as error:  # such as a run of somebody else's, which keeps the maps of samples
        raise UserError(f"cannot write {error.filename}: {error.strerror}; what is told above is whole") from None
    return 0


def _open(options: Options) -> Subject:
    trained = files.read_run(options.run)
    rule = trained.batch_norm if options.batch_norm == "run" else options.batch_norm
    config = dataclasses.replace(
        trained,
        batch_norm="running",  # both are scored
        devices=options.devices,
        fake_devices=options.fake_devices,
        batch_size_per_device=options.batch_size_per_device,
        **({"data": options.data} if options.data else {}),
    )
    devices, precision = start_devices(config)
    check_memory(config, devices, flags=Options)
    stored = run_folder.labels_of(options.run)
    if options.data:  # other files may be encoded otherwise: only the names of the classes are the run's
        dataset = open_data(config, legend=stored and stored.legend)
    else:
        dataset = open_data(config, stored)
    split = dataset.splits.get(options.split)
    if not split:
        raise UserError(f"{dataset.name} has no {options.split} images, only {', '.join(dataset.splits)}")
    restored = restore(options.run, config, options.checkpoint, devices, precision, options.ema)
    if restored.meta["classes"] != list(dataset.classes.names):
        raise UserError(f"{options.run} was trained on other classes than {dataset.name} has")
    if rule == "recompute" and "converted_from" in restored.meta:
        raise UserError(f"{options.run} was converted: its statistics lie in BatchNorm's scale and shift, for good")
    if options.samples:
        check_samples(restored.model.dropout, options.samples, options.run)
    return Subject(options, trained, config, devices, precision, dataset, split, restored, rule == "recompute")


def _score(subject: Subject, samples: CachedSplit) -> Found:
    options, config, devices, restored = subject.options, subject.config, subject.devices, subject.restored
    shard = device_shard(devices, config.batch_size_per_device)
    source = evaluation_input(choose_placement(config.input, devices, samples), samples, shard, devices)
    score = build_steps.build_evaluator(
        source,
        len(subject.split),
        shard,
        devices,
        build.step_settings(
            config,
            restored.model,
            checkpoint_folders.class_weights_of(restored.meta),
            checkpoint_folders.preprocessing_of(restored.meta),
        ),
    )
    num_classes = len(subject.dataset.classes)

    def scored_under(variables: dict) -> tuple[Evaluation, BoundaryF1 | None]:
        run = partial(score, variables)
        return evaluate_boundaries(run, samples, num_classes) if options.boundary else (run(), None)

    evaluation, boundary = scored_under(restored.variables)
    seconds = evaluation.seconds
    confusions = {"running": evaluation.confusion}
    if subject.recomputes:
        batch_stats = restored.recomputed or _recompute(subject)
        variables = restored.variables | {"batch_stats": replicate(batch_stats, devices)}
        restored = dataclasses.replace(restored, variables=variables)
        evaluation, boundary = scored_under(variables)
        confusions["recompute"] = evaluation.confusion
    sampled = None
    if options.samples:
        network = folded(restored, config)
        sampled = score_samples(network, source, samples, shard, devices, options.samples, config.seed)
    by_image = Images(subject.split.names, evaluation.confusions) if evaluation.confusions is not None else None
    return Found(evaluation, boundary, confusions, by_image, sampled, seconds)


def _recompute(subject: Subject) -> dict[str, Any]:
    """BatchNorm's statistics of a run's network over the images that it was trained on."""
    trained, restored = subject.trained, subject.restored
    known = restored.meta["data"]["train"]
    split = subject.dataset.splits["train"]
    if split.fingerprint != known:  # scored on other data
        split = open_data(trained).splits["train"]
    if split.fingerprint != known:
        logger.warning(f"the training images of {trained.data} are not those that {subject.options.run} was trained on")
    samples = decode(split, trained, "reading train images")
    preprocessing = checkpoint_folders.preprocessing_of(restored.meta)
    size = restored.meta["global_batch_size"]
    with bar("recomputing BatchNorm", len(split)) as advance:
        network = (restored.model, restored.variables, samples, preprocessing)
        return recompute(trained, size, *network, subject.devices, advance)


def _print(subject: Subject, found: Found, told: dict[str, Any]) -> None:
    options = subject.options
    table = scores(found.evaluation.confusion)
    print_table(table, subject.dataset.classes, interval=told["interval"], boundary=found.boundary)
    if len(told.get("sequences", {})) > 1:
        print_sequences(told["sequences"])
    step = subject.restored.meta["step"]
    echo(f"{len(subject.split)} {options.split} images, {subject.restored.which} checkpoint (step {step})")
    if subject.recomputes:
        running, recomputed = (scores(found.confusions[name]).miou for name in ("running", "recompute"))
        echo(f"BatchNorm's statistics recomputed: mIoU {recomputed:.4f}; with the running ones: {running:.4f}")


def _summary(subject: Subject, found: Found) -> dict[str, Any]:
    """What `--json` writes, but for what is told of single images."""
    options, config, restored = subject.options, subject.config, subject.restored
    num_images = len(subject.split)
    summary = result(
        scores(found.evaluation.confusion),
        subject.dataset.classes,
        protocol=config.protocol or "custom",
        split=options.split,
        num_images=num_images,
        seconds=found.seconds,
        images_per_second=num_images / found.seconds,
        device=str(subject.devices),
        seed=config.seed,
        boundary_f1=found.boundary,
    )
    summary |= {"checkpoint": restored.which, "step": restored.meta["step"], "loss": found.evaluation.loss}
    summary |= {
        "precision": subject.precision,
        "image_size": config.image_size,
        "images": encode_images(found.by_image),
    }
    summary |= by_statistics(found.confusions) | {"confusion": found.evaluation.confusion}
    summary |= recipe(subject.trained, subject.dataset.name, restored.meta.get("global_batch_size"))
    return summary | ({"samples": found.sampled.as_json()} if found.sampled else {})


def _draw(subject: Subject, found: Found, samples: CachedSplit) -> None:
    """The pictures that `--pictures` asks for."""
    options, predictions = subject.options, found.evaluation.predictions
    chosen = sorted(predictions)
    photographs, labels = zip(*map(samples.read, chosen), strict=True)
    drawn = prediction_pictures(
        None if options.masks_only else np.stack(photographs),
        np.stack(labels),
        np.stack([predictions[index] for index in chosen]),
        [subject.split.names[index] for index in chosen],
        subject.dataset.classes,
        os.path.realpath(options.pictures),  # the user's own word, which may be a link
        subject.restored.meta["step"],
        options.split,
        asked_for=True,
    )
    echo(f"drew {os.path.join(options.pictures, drawn.name)}")


if __name__ == "__main__":
    run_command(main)

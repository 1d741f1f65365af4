"""Evaluate a trained run on a split: `python -m segnet_jax.evaluate --help`."""

import dataclasses
import logging
import os
import sys
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_flags
from segnet_jax.config.options import File, Folder, NumDevices, RunFolder
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
from segnet_jax.runs.checks import check_has_dataset, check_recomputable
from segnet_jax.runs.dataset import decode, open_data
from segnet_jax.runs.out_of_memory import check_memory, explain_out_of_memory
from segnet_jax.runs.result import by_statistics, recipe, summarize_images
from segnet_jax.system.callable_module import make_callable
from segnet_jax.system.command import run_command
from segnet_jax.system.console import bar, echo
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import check_place, write_result
from segnet_jax.training import build, build_steps, checkpoint_folders
from segnet_jax.training.batch_norm_statistics import precise_statistics
from segnet_jax.training.devices import device_shard, start_devices
from segnet_jax.training.evaluation import Evaluation, evaluate_boundaries
from segnet_jax.training.inputs import choose_placement, evaluation_input
from segnet_jax.training.network_source import is_exported, local_folder, read_network_config
from segnet_jax.training.own_objects import OwnObjects
from segnet_jax.training.restored import CheckpointChoice, Restored, restore

logger = logging.getLogger(__name__)

DESCRIPTION = """Score a checkpoint of a run on every image of a split.

Example:
  python -m segnet_jax.evaluate runs/demo-1 --split val --json scores.json"""


@dataclass(frozen=True)
class EvaluateOptions:
    """Flags of `evaluate`."""

    run: Annotated[RunFolder, tyro.conf.Positional]  # run folder, exported folder, or hf://OWNER/NAME
    split: Literal["train", "val", "test"] = "val"  # split to evaluate
    data: Folder = ""  # dataset folder; default: the one that the run was trained on
    checkpoint: CheckpointChoice = "result"  # checkpoint to load; result: the one that result.json scores
    network: str = ""  # own network that the run was trained with, MODULE:CLASS, which is imported only if named here
    batch_norm: Literal["run", "running", "recompute"] = "run"  # BatchNorm statistics to use; run: as the run's config
    ema: bool = True  # use the averaged (EMA or SWA) parameters if the run has them
    samples: int = 0  # also evaluate the mean of this many dropout samples (Bayesian SegNet), with its uncertainty
    devices: NumDevices = "all"  # number of devices, or "all"
    fake_devices: int = 0  # split the CPU into this many devices, for testing
    batch_size_per_device: int = 4  # images per device and forward pass; does not affect the scores
    boundary: bool = True  # also compute the boundary F1, about 0.05 s of host time per 360x480 image
    json: File = ""  # JSON file to write the result to
    pictures: Folder = ""  # folder to draw six images with their labels and predictions into
    masks_only: bool = False  # leave the photographs out of --pictures and of stored samples


def main() -> int:
    """Run the command."""
    return evaluate(parse_flags(EvaluateOptions, sys.argv[1:], prog="segnet_jax.evaluate", description=DESCRIPTION))


@dataclass(frozen=True, eq=False)
class EvaluatedNetwork:
    """A restored network, and the split that it is evaluated on.

    Attributes:
      options: flags of the command.
      trained: config that the run was trained with.
      config: the same config with the overrides of this evaluation.
      devices: devices to compute on.
      precision: dtype of activations.
      dataset: dataset that the split belongs to.
      split: split to evaluate.
      restored: checkpoint with running BatchNorm statistics.
      recomputes: whether the result uses recomputed BatchNorm statistics.
    """

    options: EvaluateOptions
    trained: Config
    config: Config
    devices: Devices
    precision: str
    dataset: Dataset
    split: Split
    restored: Restored
    recomputes: bool


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Scores of a network on a split.

    Attributes:
      evaluation: evaluation with the chosen BatchNorm statistics.
      boundary: boundary F1; None with `--no-boundary`.
      confusions: confusion matrices, int64 [C,C], under "running" and, if recomputed, under "recompute".
      by_image: confusion matrix of each image; None if there were too many to keep.
      sampled: scores of the dropout samples; None without `--samples`.
      seconds: time of the first evaluation without compilation, including waits for the boundary matching.
    """

    evaluation: Evaluation
    boundary: BoundaryF1 | None
    confusions: dict[str, np.ndarray]
    by_image: Images | None
    sampled: SampledScores | None
    seconds: float


def evaluate(options: EvaluateOptions) -> int:
    """Evaluate a run, print the score table and write the requested files; return the exit code."""
    evaluate_to_json(options)
    return 0


def evaluate_to_json(options: EvaluateOptions, own: OwnObjects = build.NO_OBJECTS) -> dict[str, Any]:
    """Evaluate a run, print the score table, write the requested files, and return what `--json` writes.

    Raises:
      UserError: If the run or split does not exist, the dataset's classes differ from the run's, or a file cannot be
        written.
      OutOfMemory: If a batch does not fit into memory.
    """
    check_place("json", options.json)
    options = dataclasses.replace(options, run=local_folder(options.run))
    if options.pictures and os.path.lexists(options.pictures) and not os.path.isdir(options.pictures):
        raise UserError(f"--pictures {options.pictures} is a file; give a folder")
    subject = _open(options, own)
    if options.pictures:
        check_pictures(options.pictures, subject.restored.meta["step"])
    samples = decode(subject.split, subject.config, f"reading {options.split} images")
    with explain_out_of_memory(subject.config, subject.devices, flags=EvaluateOptions):
        evaluated = _evaluate(subject, samples)
    if not subject.devices.is_writer:
        return {}
    image_summary = summarize_images(evaluated.by_image)
    summary = _summary(subject, evaluated) | image_summary
    _print(subject, evaluated, image_summary)
    try:
        if options.json:
            write_result(options.json, summary)
        if evaluated.sampled:
            about = {"split": options.split, "num_images": len(subject.split), "step": subject.restored.meta["step"]}
            photographs = None if options.masks_only else samples
            evaluated.sampled.report(options.run, about, subject.split.names, photographs, subject.dataset.classes)
        if options.pictures:
            _draw(subject, evaluated, samples)
    except OSError as error:  # for example a read-only run, which the uncertainty maps are written to
        raise UserError(f"cannot write {error.filename}: {error.strerror}; the scores above are complete") from None
    return summary


def _open(options: EvaluateOptions, own: OwnObjects) -> EvaluatedNetwork:
    trained = read_network_config(options.run, options.network)
    check_has_dataset(options.run, options.data)
    rule = trained.batch_norm if options.batch_norm == "run" else options.batch_norm
    config = dataclasses.replace(
        trained,
        batch_norm="running",  # recomputed statistics are evaluated in addition
        devices=options.devices,
        fake_devices=options.fake_devices,
        batch_size_per_device=options.batch_size_per_device,
        **({"data": options.data} if options.data else {}),
    )
    devices, precision = start_devices(config)
    check_memory(config, devices, flags=EvaluateOptions)
    stored = run_folder.labels_of(options.run)
    # Other label files may be encoded differently; only the class names must match.
    known = {"label_mapping": stored and stored.label_mapping} if options.data else {"stored": stored}
    dataset = open_data(config, **known)
    split = dataset.splits.get(options.split)
    if not split:
        raise UserError(f"{dataset.name} has no {options.split} split; choose --split from {', '.join(dataset.splits)}")
    restored = restore(options.run, config, options.checkpoint, devices, precision, options.ema, own=own)
    if restored.meta["classes"] != list(dataset.classes.names):
        raise UserError(f"the classes of dataset {dataset.name} differ from those that {options.run} was trained on")
    if rule == "recompute":
        check_recomputable(restored.meta, options.run)
    if options.samples:
        check_samples(restored.model.dropout, options.samples, options.run)
    return EvaluatedNetwork(options, trained, config, devices, precision, dataset, split, restored, rule == "recompute")


def _evaluate(subject: EvaluatedNetwork, samples: CachedSplit) -> EvaluationResult:
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

    def evaluate_with(variables: dict) -> tuple[Evaluation, BoundaryF1 | None]:
        run = partial(score, variables)
        return evaluate_boundaries(run, samples, len(subject.dataset.classes)) if options.boundary else (run(), None)

    evaluation, boundary = evaluate_with(restored.variables)
    seconds = evaluation.seconds
    confusions = {"running": evaluation.confusion}
    if subject.recomputes:
        batch_stats = restored.recomputed or _recompute(subject)
        variables = restored.variables | {"batch_stats": replicate(batch_stats, devices)}
        restored = dataclasses.replace(restored, variables=variables)
        evaluation, boundary = evaluate_with(variables)
        confusions["recompute"] = evaluation.confusion
    sampled = None
    if options.samples:
        sampled = score_samples(folded(restored, config), source, samples, shard, devices, options.samples, config.seed)
    by_image = Images(subject.split.names, evaluation.confusions) if evaluation.confusions is not None else None
    return EvaluationResult(evaluation, boundary, confusions, by_image, sampled, seconds)


def _recompute(subject: EvaluatedNetwork) -> dict[str, Any]:
    """Return precise BatchNorm statistics over the training images of the run."""
    trained, restored = subject.trained, subject.restored
    fingerprint = restored.meta["data"]["train"]
    split = subject.dataset.splits["train"]
    if split.fingerprint != fingerprint:  # evaluated on another dataset
        split = open_data(trained).splits["train"]
    if split.fingerprint != fingerprint:
        logger.warning(
            f"the training images in {trained.data} have changed since {subject.options.run} was trained; BatchNorm "
            "statistics are recomputed over the present ones"
        )
    samples = decode(split, trained, "reading train images")
    preprocessing = checkpoint_folders.preprocessing_of(restored.meta)
    size = restored.meta["global_batch_size"]
    with bar("recomputing BatchNorm", len(split)) as advance:
        network = (restored.model, restored.variables, samples, preprocessing)
        return precise_statistics(trained, size, *network, subject.devices, advance)


def _print(subject: EvaluatedNetwork, evaluated: EvaluationResult, image_summary: dict[str, Any]) -> None:
    options = subject.options
    table = scores(evaluated.evaluation.confusion)
    print_table(table, subject.dataset.classes, interval=image_summary["interval"], boundary=evaluated.boundary)
    if len(image_summary.get("sequences", {})) > 1:
        print_sequences(image_summary["sequences"])
    step = subject.restored.meta["step"]
    echo(f"{len(subject.split)} {options.split} images, {subject.restored.which} checkpoint (step {step})")
    if subject.recomputes:
        running, recomputed = (scores(evaluated.confusions[name]).miou for name in ("running", "recompute"))
        echo(f"mIoU with recomputed BatchNorm statistics: {recomputed:.4f}; with running statistics: {running:.4f}")


def _summary(subject: EvaluatedNetwork, evaluated: EvaluationResult) -> dict[str, Any]:
    """Return what `--json` writes, except for the summary of single images."""
    options, config, restored = subject.options, subject.config, subject.restored
    num_images = len(subject.split)
    summary = result(
        scores(evaluated.evaluation.confusion),
        subject.dataset.classes,
        protocol=config.protocol or "custom",
        split=options.split,
        num_images=num_images,
        seconds=evaluated.seconds,
        images_per_second=num_images / evaluated.seconds,
        device=str(subject.devices),
        seed=config.seed,
        boundary_f1=evaluated.boundary,
    )
    summary |= {"checkpoint": restored.which, "step": restored.meta["step"], "loss": evaluated.evaluation.loss}
    summary |= {"precision": subject.precision, "image_size": config.image_size}
    summary |= {"images": encode_images(evaluated.by_image), "confusion": evaluated.evaluation.confusion}
    summary |= by_statistics(evaluated.confusions)
    about = recipe(subject.trained, subject.dataset.name, restored.meta.get("global_batch_size"))
    summary |= {"dataset": about["dataset"]} if is_exported(options.run) else about
    return summary | ({"samples": evaluated.sampled.as_json()} if evaluated.sampled else {})


def _draw(subject: EvaluatedNetwork, evaluated: EvaluationResult, samples: CachedSplit) -> None:
    """Draw the figure of `--pictures`."""
    options, predictions = subject.options, evaluated.evaluation.predictions
    chosen = sorted(predictions)
    photographs, labels = zip(*map(samples.read, chosen), strict=True)
    drawn = prediction_pictures(
        None if options.masks_only else np.stack(photographs),
        np.stack(labels),
        np.stack([predictions[index] for index in chosen]),
        [subject.split.names[index] for index in chosen],
        subject.dataset.classes,
        os.path.realpath(options.pictures),  # the user may name a link
        subject.restored.meta["step"],
        options.split,
        asked_for=True,
    )
    echo(f"wrote {os.path.join(options.pictures, drawn.name)}")


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__)  # segnet_jax.evaluate(...) of the Python API

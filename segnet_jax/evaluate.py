"""Evaluate a trained run on a split: `python -m segnet_jax.evaluate --help`."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import tyro

from segnet_jax.config.fields import Config
from segnet_jax.config.flag_specs import CustomNetwork, File, Folder, ImageSize, NumDevices, RunFolder, RunFolders
from segnet_jax.config.flags import parse_flags
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.inference.averaging import TTA, Views
from segnet_jax.inference.ensemble_members import open_others, warn_of_other_splits
from segnet_jax.inference.network import unfolded
from segnet_jax.inference.predictor import Sizing
from segnet_jax.inference.sampling import check_samples
from segnet_jax.inference.split_evaluation import EvaluatedNetwork, SplitScores, evaluate_split
from segnet_jax.inference.stored_temperature import CALIBRATION_FILE, check_own_images, conditions
from segnet_jax.metrics.confusion import scores
from segnet_jax.reporting.csv_files import image_scores_csv, is_image_scores
from segnet_jax.reporting.environment import result
from segnet_jax.reporting.evaluations import encode_images
from segnet_jax.reporting.figures import check_pictures, draw_pictures
from segnet_jax.reporting.tables import percent, print_sequences, print_table
from segnet_jax.runs import run_folder
from segnet_jax.runs.config_checks import check_has_dataset, check_recomputable
from segnet_jax.runs.load_dataset import decode, open_data
from segnet_jax.runs.out_of_memory import check_memory, explain_out_of_memory
from segnet_jax.runs.result import by_statistics, recipe, recompute_statistics, summarize_images
from segnet_jax.system.callable_module import make_callable
from segnet_jax.system.command import run_command
from segnet_jax.system.console import echo
from segnet_jax.system.errors import DiskFull, UserError, is_disk_full
from segnet_jax.system.files import atomic_write_json, atomic_write_text, check_distinct, check_place, write_result
from segnet_jax.training.choose_devices import start_devices
from segnet_jax.training.custom_objects import NO_OBJECTS, CustomObjects, missing
from segnet_jax.training.network_source import is_exported, local_folder, read_network_config
from segnet_jax.training.restore_network import BatchNormChoice, CheckpointChoice, restore

DESCRIPTION = """Score a checkpoint of a run, or the mean probabilities of several runs, on every image of a split.

Examples:
  python -m segnet_jax.evaluate runs/demo-1 --split val --json scores.json
  python -m segnet_jax.evaluate runs/demo-1 runs/demo-2 --tta flip --csv images.csv"""


@dataclass(frozen=True)
class EvaluateOptions:
    """Flags of `evaluate`."""

    run: Annotated[RunFolder, tyro.conf.Positional]  # run folder, exported folder, or hf://OWNER/NAME
    more_runs: Annotated[RunFolders, tyro.conf.Positional] = ()  # other runs to average with (ensemble)
    split: Literal["train", "val", "test"] = "val"  # split to evaluate
    data: Folder = ""  # dataset folder; default: the one that the run was trained on
    checkpoint: CheckpointChoice = "result"  # checkpoint to load; result: the one that result.json scores
    network: CustomNetwork = ""  # custom network of the run; it is imported only if it is named here
    batch_norm: BatchNormChoice = "run"  # BatchNorm statistics to use; run: as in the run's config
    ema: bool = True  # use the averaged (EMA or SWA) parameters if the run has them
    samples: int = 0  # also evaluate the mean of this many dropout samples (Bayesian SegNet), with its uncertainty
    tta: TTA = "none"  # test-time augmentation: flip averages the probabilities over the image and its mirror image
    # also average over these factors of the image size, such as 0.75 1 1.25
    tta_scales: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FACTOR")] = (1.0,)
    tile: ImageSize = (0, 0)  # height and width of tiles, to evaluate at the images' native size; 0 0: no tiles
    overlap: int = 64  # minimum overlap of neighboring tiles, pixels, as in predict
    # fit a temperature to calibrate the confidence on validation images; stored in the run and used by predict
    calibrate: bool = False
    devices: NumDevices = "all"  # number of devices, or "all"
    fake_devices: int = 0  # split the CPU into this many devices, for testing
    batch_size_per_device: int = 4  # images per device and forward pass; does not affect the scores
    boundary: bool = True  # also compute the boundary F1, about 0.05 s of host time per 360x480 image
    json: File = ""  # JSON file to write the result to
    csv: File = ""  # CSV file to write the scores of each image to
    pictures: Folder = ""  # folder to draw six images with their labels and predictions into
    masks_only: bool = False  # omit the photographs from --pictures and from stored samples

    def __post_init__(self):
        """Check that the flags can be used together.

        Raises:
          UserError: If two of them contradict each other.
        """
        averages = self.more_runs or not self.views.is_off
        if self.samples and (averages or self.tile != (0, 0)):
            raise UserError("--samples works for one network without --tta, --tta-scales and --tile: remove either")
        if self.tile != (0, 0) and (self.pictures or self.calibrate):
            raise UserError("--pictures and --calibrate use images of the training size: remove them or --tile")
        if self.calibrate and self.split != "val":
            raise UserError(f"--calibrate fits on validation images: use --split val, got --split {self.split}")
        if self.calibrate and (self.more_runs or not self.ema or self.batch_norm != "run"):
            raise UserError("--calibrate needs a single run as trained: remove other runs, --no-ema and --batch-norm")

    @property
    def views(self) -> Views:
        """The views of an image whose probabilities are averaged."""
        return Views.of(self.tta, self.tta_scales)


def main() -> int:
    """Run the command."""
    return evaluate(parse_flags(EvaluateOptions, sys.argv[1:], prog="segnet_jax.evaluate", description=DESCRIPTION))


@dataclass(frozen=True, eq=False)
class Subject:
    """The network to evaluate, and the settings that its result reports.

    Attributes:
      options: flags of the command.
      trained: config that the run was trained with.
      precision: dtype of activations.
      network: the restored network and its split.
      recomputes: whether the result uses recomputed BatchNorm statistics.
    """

    options: EvaluateOptions
    trained: Config
    precision: str
    network: EvaluatedNetwork
    recomputes: bool


def evaluate(options: EvaluateOptions) -> int:
    """Evaluate a run, print the score table and write the requested files; return the exit code."""
    evaluate_to_json(options)
    return 0


def evaluate_to_json(options: EvaluateOptions, own: CustomObjects = NO_OBJECTS) -> dict[str, Any]:
    """Evaluate a run, print the score table, write the requested files, and return the content of `--json`.

    Raises:
      UserError: If the run or split does not exist, the dataset's classes differ, or a file cannot be written.
      DiskFull, OutOfMemory: If a disk is full, or a batch does not fit into memory.
    """
    check_place("json", options.json)
    check_place("csv", options.csv, is_ours=is_image_scores)
    check_distinct({"--json": options.json, "--csv": options.csv})
    run = local_folder(options.run)
    if options.calibrate and run != options.run:
        raise UserError(f"--calibrate writes to the run, but {options.run} is not a folder: download it first")
    options = dataclasses.replace(options, run=run)
    if options.pictures and os.path.lexists(options.pictures) and not os.path.isdir(options.pictures):
        raise UserError(f"--pictures {options.pictures} is a file; give a folder")
    subject = _open(options, own)
    network, classes = subject.network, subject.network.dataset.classes
    about = {"split": options.split, "num_images": len(network.split), "step": network.restored.meta["step"]}
    if options.pictures:
        check_pictures(options.pictures, about["step"])
    samples = None
    if options.tile == (0, 0):  # otherwise images are read at their native size
        samples = decode(network.split, network.config, f"reading {options.split} images")
    with explain_out_of_memory(network.config, network.devices, flags=EvaluateOptions):
        evaluated = _evaluate(subject, samples)
    if not network.devices.is_writer:
        return {}
    image_summary = summarize_images(evaluated.by_image)
    summary = _summary(subject, evaluated) | image_summary
    _print(subject, evaluated, image_summary)
    try:
        if evaluated.temperature:
            valid_for = conditions(network.restored.meta, options.views, network.sizing)
            fitted = evaluated.temperature.as_json() | about | valid_for
            atomic_write_json(os.path.join(options.run, CALIBRATION_FILE), fitted)
        if options.json:
            write_result(options.json, summary)
        if options.csv:
            _write_csv(options.csv, evaluated, classes.names)
        if evaluated.sampled:
            photographs = None if options.masks_only else samples
            evaluated.sampled.report(options.run, about, network.split.names, photographs, classes)
        if options.pictures:
            found = sorted(evaluated.evaluation.predictions.items())
            pictures = [(network.split.names[index], *samples.read(index), ids) for index, ids in found]
            how = {"step": about["step"], "split": options.split, "masks_only": options.masks_only}
            echo(f"wrote {draw_pictures(options.pictures, pictures, classes, **how)}")
    except OSError as error:  # for example a read-only run, which the uncertainty maps are written to
        why = f"cannot write {error.filename or 'a file'}: {error.strerror}; the scores above are complete"
        raise (DiskFull if is_disk_full(error) else UserError)(why) from None
    return summary


def _open(options: EvaluateOptions, own: CustomObjects) -> Subject:
    trained = read_network_config(options.run, options.network, options.more_runs)
    check_has_dataset(options.run, options.data)
    own_of_first = own if not options.more_runs or missing("model", trained.own) else NO_OBJECTS
    rule = trained.batch_norm if options.batch_norm == "run" else options.batch_norm
    here = {
        "devices": options.devices,
        "fake_devices": options.fake_devices,
        "batch_size_per_device": options.batch_size_per_device,
        **({"data": options.data} if options.data else {}),
    }
    config = dataclasses.replace(trained, **here)
    sizing = Sizing.of(config, "trained", options.tile, options.overlap)
    devices, precision = start_devices(config)
    if not sizing.tile:
        check_memory(config, devices, flags=EvaluateOptions)
    stored = run_folder.labels_of(options.run)
    # Other label files may be encoded differently; only the class names must match.
    known = {"label_mapping": stored and stored.label_mapping} if options.data else {"stored": stored}
    dataset = open_data(config, **known)
    split = dataset.splits.get(options.split)
    if not split:
        raise UserError(f"{dataset.name} has no {options.split} split; choose --split from {', '.join(dataset.splits)}")
    how = {"checkpoint": options.checkpoint, "devices": devices, "precision": precision, "use_ema": options.ema}
    statistics = options.batch_norm if options.more_runs else "running"  # recomputed ones are evaluated in addition
    restored = restore(options.run, config, **how, own=own_of_first, batch_norm=statistics)
    if restored.meta["classes"] != list(dataset.classes.names):
        raise UserError(f"the classes of dataset {dataset.name} differ from those that {options.run} was trained on")
    first = options.run, unfolded(restored, config)
    others = open_others(first, options.more_runs, here, unfolded, **how, batch_norm=options.batch_norm, own=own)
    if options.split != "test":
        warn_of_other_splits((options.run, *options.more_runs), (first[1], *others))
    recomputes = rule == "recompute" and not others
    if recomputes:
        check_recomputable(restored.meta, options.run)
    if options.calibrate:
        check_own_images(split, restored.meta, options.run)
    if options.samples:
        check_samples(restored.model.dropout, options.samples, options.run)
    network = EvaluatedNetwork(
        config=config,
        devices=devices,
        dataset=dataset,
        split=split,
        restored=restored,
        others=others,
        views=options.views,
        sizing=sizing,
    )
    return Subject(options, trained, precision, network, recomputes)


def _evaluate(subject: Subject, samples: CachedSplit | None) -> SplitScores:
    options, network = subject.options, subject.network
    about_run = (options.run, subject.trained, network.dataset, network.restored, network.devices)
    return evaluate_split(
        network,
        samples,
        boundary=options.boundary,
        num_samples=options.samples,
        calibrates=options.calibrate,
        recompute=partial(recompute_statistics, *about_run) if subject.recomputes else None,
    )


def _write_csv(path: str, evaluated: SplitScores, class_names: Sequence[str]) -> None:
    if evaluated.by_image is None:
        raise UserError("--csv is not possible for so many images and classes; the scores above are complete")
    atomic_write_text(path, image_scores_csv(evaluated.by_image.names, evaluated.by_image.confusions, class_names))


def _print(subject: Subject, evaluated: SplitScores, image_summary: dict[str, Any]) -> None:
    options, network = subject.options, subject.network
    table = scores(evaluated.evaluation.confusion)
    print_table(table, network.dataset.classes, interval=image_summary["interval"], boundary=evaluated.boundary)
    if len(image_summary.get("sequences", {})) > 1:
        print_sequences(image_summary["sequences"])
    step = network.restored.meta["step"]
    about = f"{len(network.split)} {options.split} images, {network.restored.which} checkpoint (step {step})"
    averaged = [f"mean of {1 + len(network.others)} runs"] if network.others else []
    averaged += [] if network.views.is_off else [str(network.views)]
    averaged += [f"tiles of {options.tile[0]}x{options.tile[1]}"] if network.sizing.tile else []
    echo(", ".join([about, *averaged]))
    if subject.recomputes:
        running, recomputed = (scores(evaluated.confusions[name]).miou for name in ("running", "recompute"))
        echo(f"mIoU with recomputed BatchNorm statistics: {recomputed:.4f}; with running statistics: {running:.4f}")
    if fitted := evaluated.temperature:
        before, after = map(percent, fitted.error)
        echo(f"temperature {fitted.temperature:.4f}: calibration error {before} before, {after} after")


def _summary(subject: Subject, evaluated: SplitScores) -> dict[str, Any]:
    """Return the content of `--json`, except for the per-image summary."""
    options, network = subject.options, subject.network
    config, restored, num_images = network.config, network.restored, len(network.split)
    summary = result(
        scores(evaluated.evaluation.confusion),
        network.dataset.classes,
        protocol=config.protocol or "custom",
        split=options.split,
        num_images=num_images,
        seconds=evaluated.seconds,
        images_per_second=num_images / evaluated.seconds,
        device=str(network.devices),
        seed=config.seed,
        boundary_f1=evaluated.boundary,
    )
    summary |= {"checkpoint": restored.which, "step": restored.meta["step"], "loss": evaluated.evaluation.loss}
    summary |= {"precision": subject.precision, "image_size": config.image_size}
    summary |= {"images": encode_images(evaluated.by_image), "confusion": evaluated.evaluation.confusion}
    summary |= by_statistics(evaluated.confusions)
    about = recipe(subject.trained, network.dataset.name, restored.meta.get("global_batch_size"))
    if is_exported(options.run):
        about = {"dataset": about["dataset"]}
    plain, extra = EvaluateOptions(options.run), {}
    for name in ("tta", "tta_scales", "tile"):  # settings that make the result differ from the run's
        if (value := getattr(options, name)) != (default := getattr(plain, name)):
            extra[name] = [default, value]
    if network.others:
        extra["runs"] = [[options.run], [options.run, *options.more_runs]]
    if "differences" in about:
        about["differences"] |= extra
    summary |= about | {name: value for name, (_, value) in extra.items()}
    if network.sizing.tile:
        summary["overlap"] = options.overlap
    if evaluated.temperature:
        summary["calibration"] = evaluated.temperature.as_json()
    return summary | ({"samples": evaluated.sampled.as_json()} if evaluated.sampled else {})


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__)  # segnet_jax.evaluate(...) of the Python API

"""Segment images, folders, videos and camera frames: `python -m segnet_jax.predict --help`."""

import contextlib
import dataclasses
import itertools
import logging
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import jax
import tyro

from segnet_jax.config.fields import Config
from segnet_jax.config.files import is_run
from segnet_jax.config.flag_specs import CustomNetwork, File, Folder, ImageSize, NumDevices, RunFolder, Section
from segnet_jax.config.flags import parse_flags
from segnet_jax.constants import RGB, VOID
from segnet_jax.data.images.picture_header import MAX_PIXELS, largest_image
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.inference.averaging import TTA, Views, average
from segnet_jax.inference.ensemble_members import open_others
from segnet_jax.inference.labels import find_labels, rule_of
from segnet_jax.inference.network import folded, unfolded
from segnet_jax.inference.outputs import LabelScoring, Outputs, check_free, output_suffixes, print_totals
from segnet_jax.inference.prediction_pipeline import segment_all
from segnet_jax.inference.predictor import Predictor, Size, Sizing
from segnet_jax.inference.sampling import check_samples
from segnet_jax.inference.sources import Source, find_sources, name_outputs
from segnet_jax.inference.stored_temperature import conditions, read_temperature
from segnet_jax.inference.video import load_av
from segnet_jax.reporting import prediction_files
from segnet_jax.runs import run_folder
from segnet_jax.runs.load_dataset import read_options_of
from segnet_jax.runs.out_of_memory import check_memory
from segnet_jax.system.bucket_address import is_bucket
from segnet_jax.system.command import run_command
from segnet_jax.system.disk import DiskRetry
from segnet_jax.system.errors import OutOfMemory, Stopped, UserError, UserErrors, is_out_of_memory
from segnet_jax.system.files import check_distinct, check_place, write_result
from segnet_jax.system.signals import Stop
from segnet_jax.training.choose_devices import start_devices
from segnet_jax.training.network_source import is_exported, local_folder, read_network_config
from segnet_jax.training.restore_network import CheckpointChoice, restore
from segnet_jax.weights.hub import is_repository

logger = logging.getLogger(__name__)

DESCRIPTION = """Segment images, all images in a folder, videos (extra `video`), or a camera frame (the camera's
number, such as 0).

For a.jpg it writes a.png, a palette image with class ids as values, and a_overlay.jpg; for a.mp4, a_overlay.mp4. If a
pixel may have several classes, it writes a_CLASS.png, a mask of 0 and 255, for each class instead of a.png.
Existing files are never overwritten.

Examples:
  python -m segnet_jax.predict runs/demo-1 photos/ --out labeled --json labeled.json
  python -m segnet_jax.predict runs/demo-1 runs/demo-2 photos/ --out labeled --tta flip
  python -m segnet_jax.predict runs/demo-1 map.png --tile 512 512"""


@dataclass(frozen=True)
class PredictOptions:
    """Flags of `predict`."""

    SECTIONS: ClassVar[tuple[Section, ...]] = (
        Section("output", "out", ("out", "json", "confidence", "labels")),
        Section("network", "checkpoint", ("checkpoint", "samples", "tta")),
        Section("image size", "size", ("size", "tile")),
        Section("devices", "devices", ("devices", "batch_size_per_device")),
    )

    run: Annotated[RunFolder, tyro.conf.Positional]  # run folder, exported folder, or hf://OWNER/NAME
    # other runs to average with (ensemble); then images, folders, videos, camera numbers
    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE")] = ()
    out: Folder = ""  # output folder; default: the next free RUN/predictions-NUMBER
    json: File = ""  # JSON file to write a summary to
    key: bool = True  # draw a class key below each overlay, which increases its height
    confidence: bool = False  # also write NAME_confidence.png, the probability of the predicted class, 0..255
    frames: bool = False  # also write each video frame's class ids, NAME_frames/000001.png etc.
    labels: Folder = ""  # folder with labels of the images: print scores and write NAME_errors.png
    void: int = -1  # label value of void; -1: as the run reads labels
    checkpoint: CheckpointChoice = "result"  # checkpoint to load; result: the one that result.json scores
    network: CustomNetwork = ""  # custom network of the run; it is imported only if it is named here
    samples: int = 0  # predict the mean of this many dropout samples (Bayesian SegNet); 0: no sampling
    # with --samples, also write NAME_entropy.png, NAME_information.png and NAME_variance.png, 0..255
    uncertainty: bool = False
    tta: TTA = "none"  # test-time augmentation: flip averages the probabilities over the image and its mirror image
    # also average over these factors of the network's input size, such as 0.75 1 1.25
    tta_scales: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FACTOR")] = (1.0,)
    # network input size: as in training (with its padding), native, or HEIGHT WIDTH
    size: Annotated[Size, tyro.conf.arg(metavar="{trained,native} | HEIGHT WIDTH")] = "trained"
    tile: ImageSize = (0, 0)  # height and width of tiles, to segment large images at native size; 0 0: no tiles
    overlap: int = 64  # minimum overlap of neighboring tiles, pixels; the outer quarter of each overlap is discarded
    devices: NumDevices = "all"  # number of devices, or "all"
    fake_devices: int = 0  # split the CPU into this many devices, for testing
    batch_size_per_device: int = 4  # images per device and forward pass; does not affect the predictions
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # dtype of activations

    def __post_init__(self):
        """Check `void`, and that the flags can be used together.

        Raises:
          UserError: If `void` is not a byte value, or two flags contradict each other.
        """
        if not -1 <= self.void <= VOID:
            raise UserError(f"--void must be between 0 and {VOID}, got {self.void}")
        if self.samples and (self.num_others or not self.views.is_off):
            raise UserError("--samples works for one network without --tta and --tta-scales: remove either")

    @property
    def views(self) -> Views:
        """The views of an image whose probabilities are averaged."""
        return Views.of(self.tta, self.tta_scales)

    @property
    def num_others(self) -> int:
        """Number of leading paths that are runs to average with."""
        return len(list(itertools.takewhile(_is_network, self.paths)))


def _is_network(path: str) -> bool:
    return is_repository(path) or is_bucket(path) or is_run(pathlib.Path(path)) or is_exported(path)


def main() -> int:
    """Run the command."""
    return predict(parse_flags(PredictOptions, sys.argv[1:], prog="segnet_jax.predict", description=DESCRIPTION))


def predict(options: PredictOptions) -> int:
    """Segment all inputs and return the exit code.

    Raises:
      UserError: If the options are invalid; nothing has been written then.
      UserErrors: If inputs could not be read; raised after all others are done.
      ExitError: If a signal stopped the command, or the disk is full; files written before are complete.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop(first="finishing the files in progress"))
        with stop.at_once():
            check_place("json", options.json, made=options.out)
            if options.json and os.path.lexists(options.json):
                raise UserError(f"--json {options.json} already exists and is not overwritten; choose another file")
            run = local_folder(options.run)
            if run != options.run and not options.out:
                raise UserError(f"{options.run} is not a folder to write predictions to: add --out FOLDER")
            others, paths = options.paths[: options.num_others], options.paths[options.num_others :]
            if others and not options.out:
                raise UserError("predictions of several runs need an output folder: add --out FOLDER")
            here = {
                "devices": options.devices,
                "fake_devices": options.fake_devices,
                "batch_size_per_device": options.batch_size_per_device,
                "precision": options.precision,
            }
            config = dataclasses.replace(read_network_config(run, options.network, others), **here)
            sizing = Sizing.of(config, options.size, options.tile, options.overlap)
            if options.uncertainty and not options.samples:
                raise UserError("--uncertainty needs dropout samples: add --samples 20")
            requested = {"confidence": options.confidence, "frames": options.frames, "errors": bool(options.labels)}
            requested["uncertainty"] = options.uncertainty
            requested["masks"] = _mask_suffixes(run, config, options)
            sources = name_outputs(find_sources(paths), partial(output_suffixes, **requested))
            labels = _labels(run, options.labels, config, sources) if options.labels else {}
            if options.out:
                check_distinct({"--json": options.json}, _files(sources, pathlib.Path(options.out), requested))
                check_free(_files(sources, pathlib.Path(options.out), requested))
            if any(source.kind != "image" for source in sources):
                if (pixels := read_options_of(config).pixels) != RGB:
                    raise UserError(
                        f"{options.run} segments images of {pixels}, but videos and cameras provide 8-bit RGB"
                    )
                load_av()  # fail early if it is not installed
            devices, precision = start_devices(config)
            if sizing.size == "trained" and not sizing.tile:
                check_memory(dataclasses.replace(config, batch_size_per_device=1), devices, flags=PredictOptions)
            restored = restore(run, config, options.checkpoint, devices, precision)
            form = unfolded if options.labels else folded  # so that scores match those of `evaluate` bit for bit
            own = form(restored, config)
            which = options.checkpoint
            members = own, *open_others((options.run, own), others, here, form, which, devices, precision)
            network, temperature = average(members, options.views), 1.0
            if not others and not options.samples:
                temperature = read_temperature(run, conditions(restored.meta, options.views, sizing))
            if options.samples:
                check_samples(config.dropout, options.samples, options.run)
            per_device = config.batch_size_per_device
            if all(source.kind == "image" for source in sources) and not sizing.tile:
                per_device = min(per_device, -(-len(sources) // devices.total))
            settings = {"num_samples": options.samples, "scores": bool(options.labels), "temperature": temperature}
            predictor = Predictor(network, devices, per_device, sizing, **settings)
            max_pixels = largest_image() if sizing.tile else MAX_PIXELS
            scoring = _scoring(run, options, config, network.classes, sizing, max_pixels) if options.labels else None
            out = _make_folder(options)
        write = DiskRetry(out, waits=False, stop=stop)
        outputs = Outputs(
            folder=out,
            classes=network.classes,
            write=write,
            key=options.key,
            confidence=options.confidence,
            uncertainty=options.uncertainty,
            frames=options.frames,
            labels=labels,
            scoring=scoring,
            reading=read_options_of(config),
            max_pixels=max_pixels,
        )
        started = time.monotonic()
        with _explain_out_of_memory():
            entries, faults_by_source = segment_all(sources, predictor, outputs, stop)
        seconds = time.monotonic() - started

        # --- summary ---
        done = [entries[source] for source in sources if source in entries]
        faults = [fault for source in sources for fault in faults_by_source.get(source, ())]
        summary = {
            "run": options.run,
            "checkpoint": restored.which,
            "step": network.step,
            "out": str(out),
            "device": str(devices),
            "precision": precision,
            **_averaging(options, others, temperature),
            "seconds": seconds,
            "num_inputs": len(sources),
            "num_done": len(done),
            **print_totals(done, out, seconds, network.classes),
            "inputs": [entry.row for entry in done],
            "faults": [dataclasses.asdict(fault) for fault in faults],
        }
        if options.json:
            write(lambda: write_result(options.json, summary))
        if stop.requested():
            raise Stopped(stop.exit_code, f"stopped after {len(done)} of {len(sources)} inputs")
        if faults:
            raise UserErrors(f"{len(faults_by_source)} of {len(sources)} inputs", faults)
        return 0


def _averaging(options: PredictOptions, others: Sequence[str], temperature: float) -> dict[str, Any]:
    """Return the summary's entries on averaging and calibration; {} without either."""
    said = {"runs": [options.run, *others]} if others else {}
    if not options.views.is_off:
        said |= {"tta": options.tta, "tta_scales": options.tta_scales}
    return said | ({"temperature": temperature} if temperature != 1 else {})


def _files(sources: Sequence[Source], folder: pathlib.Path, requested: dict[str, bool]) -> Iterator[pathlib.Path]:
    for source in sources:
        yield from (folder / f"{source.name}{suffix}" for suffix in output_suffixes(source, **requested))


def _make_folder(options: PredictOptions) -> pathlib.Path:
    """Create the output folder: `--out`, or the next free RUN/predictions-NUMBER."""
    folder = pathlib.Path(options.out or options.run)
    try:
        if options.out:
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        for number in itertools.count(1):
            folder = pathlib.Path(options.run) / f"predictions-{number}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise UserError(f"cannot create the folder {folder}: {error.strerror}; choose another with --out") from None


def _mask_suffixes(run: str, config: Config, options: PredictOptions) -> list[str]:
    """Return the suffixes of the masks of a network that predicts several classes per pixel; [] of others."""
    if not config.multi_label:
        return []
    if options.samples or options.frames:
        raise UserError("--samples and --frames are for one class per pixel, but the run has several: remove them")
    if (stored := run_folder.labels_of(run)) is None:
        raise UserError(f"{run} does not state its classes: labels.json is missing; restore it")
    return prediction_files.mask_suffixes(stored.classes.names)


def _labels(run: str, folder: str, config: Config, sources: Sequence[Source]) -> dict[Source, Entry]:
    """Return the label files of the images, or the masks that a run trained on masks of one class each reads."""
    stored = run_folder.labels_of(run)
    classes = [name for name, _ in stored.rule.masks] if stored is not None else []
    return find_labels(sources, folder, config.label_suffix, classes)


def _scoring(
    run: str, options: PredictOptions, config: Config, classes: ClassTable, sizing: Sizing, max_pixels: int
) -> LabelScoring:
    """Return the label scoring, by the run's stored label rule or, for older runs, by its config."""
    reading = read_options_of(config)
    rule = rule_of(run_folder.labels_of(run), classes, reading, options.void)
    if not sizing.is_as_evaluated:
        logger.info("note: scores are computed at each image's original size; `evaluate` scores at the training size")
    return LabelScoring(rule, reading, sizing, max_pixels)


@contextlib.contextmanager
def _explain_out_of_memory() -> Iterator[None]:
    """Turn an out-of-memory failure of a device or the host into an error with advice."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            "out of memory; try a smaller --batch-size-per-device, or --tile 512 512 for large images"
        ) from error


if __name__ == "__main__":
    run_command(main)

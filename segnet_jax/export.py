"""Export a trained network for other programs: `python -m segnet_jax.export --help`."""

import dataclasses
import datetime
import json
import logging
import pathlib
import sys
import tempfile
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from segnet_jax.config.fields import Config
from segnet_jax.config.flag_specs import CustomNetwork, File, Folder, ImageSize, RunFolder
from segnet_jax.config.flags import parse_flags
from segnet_jax.constants import RGB, Pixels
from segnet_jax.data.dataset import evenly_spaced
from segnet_jax.data.input_pipeline.cache import streamed
from segnet_jax.exporting import model_card, stablehlo
from segnet_jax.exporting.exported_network import ExportedNetwork, describe_images
from segnet_jax.exporting.formats import FILES, MODULES, Format, check_libraries, library_versions
from segnet_jax.exporting.output_folder import REPORT_FILE, explain_disk_errors, make_folder, move, read_earlier_report
from segnet_jax.exporting.parity import Parity, compare
from segnet_jax.inference.network import folded
from segnet_jax.reporting.environment import versions
from segnet_jax.runs import run_folder
from segnet_jax.runs.config_checks import check_has_dataset
from segnet_jax.runs.load_dataset import open_data, validation_split
from segnet_jax.runs.model_card_facts import card_facts
from segnet_jax.runs.out_of_memory import check_memory
from segnet_jax.system.command import run_command
from segnet_jax.system.compilation_cache import keep_no_paths
from segnet_jax.system.console import echo
from segnet_jax.system.errors import ExitError, UserError
from segnet_jax.system.files import atomic_write_json, check_place, sum_of_file, write_result
from segnet_jax.training.choose_devices import start_devices
from segnet_jax.training.network_source import NETWORK_FIELDS, READING_FIELDS, local_folder, read_network_config
from segnet_jax.training.restore_network import CheckpointChoice, restore

logger = logging.getLogger(__name__)

DESCRIPTION = """Export a run's network, then load each exported file and check that its outputs match the network's.

Formats: stablehlo for JAX without this package, on CPU, NVIDIA GPU and TPU; onnx for onnxruntime (also in a browser)
and other runtimes, requires pip install -e ".[onnx]"; safetensors for the weights only, without folding BatchNorm, with
SegNet-Tutorial's layer names, PyTorch's tensor names, and a model card, README.md; saved-model for TensorFlow.

Every format but safetensors takes uint8 images [B,H,W,3] (or the channels and bits that the network was trained on,
see train --channels and --image-bits) of any batch and image size, includes the preprocessing, and
returns the prediction, uint8 [B,H,W], and the logits, float32 [B,H,W,C]. Exports are float32, whatever precision the
run was trained in. OpenCV's dnn module needs --format onnx --size 360 480, a file for one image of this size. There is
no TFLite format: TensorFlow 2.21's converter rejects the 8-bit pooling codes.

The folder of a safetensors export can be used like a run by load, predict, evaluate and train --init, or uploaded to
the Hugging Face Hub as it is and used as hf://OWNER/NAME.

Example:
  python -m segnet_jax.export runs/demo-1 --format stablehlo onnx"""

EXPORT_FOLDER = "export"
BATCHES, MAX_SIDE = (1, 3), 16_384
_BITS = "bit c of a value is set if the pixel has class c: (prediction >> c) & 1"
_MAX_LABELS = 200_000  # characters of a label rule
ODD_SIZE = (97, 131)  # compared in addition to the run's size; odd at several stages, which exposes border bugs


@dataclass(frozen=True)
class ExportOptions:
    """Flags of `export`."""

    run: Annotated[RunFolder, tyro.conf.Positional]  # run folder, exported folder, or hf://OWNER/NAME
    format: tuple[Format, ...] = ("stablehlo",)  # formats to write
    out: Folder = ""  # output folder; default: RUN/export
    checkpoint: CheckpointChoice = "result"  # checkpoint to load; result: the one that result.json scores
    network: CustomNetwork = ""  # custom network of the run; it is imported only if it is named here
    size: ImageSize = (0, 0)  # with --format onnx: fixed height and width of the input; 0 0: any size
    data: Folder = ""  # dataset for the comparison, such as "synthetic"; default: the one that the run was trained on
    images: int = 3  # number of validation images to compare on
    # keep exports whose outputs differ from the network's by more than the limits, with a warning
    accept_mismatch: bool = False
    overwrite: bool = False  # replace earlier exports in the output folder
    json: File = ""  # JSON file to write the export report to, besides export.json


def main() -> int:
    """Run the command."""
    options = parse_flags(ExportOptions, sys.argv[1:], prog="segnet_jax.export", description=DESCRIPTION)
    jax.config.update("jax_platforms", "cpu")  # GPUs may compute float32 matrix products in TF32
    return export(options)


def export(options: ExportOptions) -> int:
    """Export to each format, compare with the network and print how to use the files; return the exit code.

    Raises:
      UserError: If the run, a library or the dataset is missing, or output files exist.
      ExitError: If an export cannot be written, or does not match the network; those that match are kept.
    """
    if options.images < 1:
        raise UserError(f"--images must be at least 1, got {options.images}")
    run = local_folder(options.run)
    if run != options.run and not options.out:
        raise UserError(f"{options.run} is not a folder to export to: add --out FOLDER")
    options = dataclasses.replace(options, run=run)
    out = pathlib.Path(options.out or pathlib.Path(run) / EXPORT_FOLDER)
    check_place("json", options.json, made=out)
    json_path = pathlib.Path(options.json)
    if (
        json_path.name in (REPORT_FILE, model_card.FILE, *FILES.values())
        and json_path.absolute().parent == out.absolute()
    ):
        raise UserError(f"--json {options.json} is a file of the export itself; choose another file")
    formats = tuple(dict.fromkeys(options.format))
    config = read_network_config(run, options.network)
    check_has_dataset(run, options.data)
    _check_size(options, config, formats)
    for name in formats:
        check_libraries(name)
    if "onnx" in formats and config.network not in ("segnet", "unet"):
        raise UserError(
            f"--format onnx supports SegNet and U-Net, not the network of {options.run}; use --format stablehlo or "
            "safetensors"
        )
    names = [FILES[name] for name in formats] + [model_card.FILE] * ("safetensors" in formats)
    earlier = read_earlier_report(out, names, options.overwrite)
    keep_no_paths()
    subject = _subject(options, config)
    images = _images(options, config)
    with explain_disk_errors(out), tempfile.TemporaryDirectory(prefix=".export-", dir=make_folder(out)) as temporary:
        exports = {name: pathlib.Path(temporary) / FILES[name] for name in formats}
        for name, path in exports.items():
            logger.info(f"writing {name}")
            MODULES[name].write(subject, path)
        if "safetensors" in formats:
            (pathlib.Path(temporary) / model_card.FILE).write_text(
                model_card.card(card_facts(run, config, subject)), "utf-8"
            )
        parities = _compare(subject, exports, images)
        discarded = _check_parity(parities, options.accept_mismatch)
        kept = [name for name in formats if name not in discarded]
        reports = {name: _report(name, subject, exports[name], out, parities[name]) for name in kept}
        for name in [FILES[name] for name in kept] + [model_card.FILE] * ("safetensors" in kept):
            move(pathlib.Path(temporary) / name, out / name)
        if kept:
            atomic_write_json(out / REPORT_FILE, earlier | reports)
        if options.json:
            write_result(options.json, reports)
    for name in kept:
        echo(f"\n{out / FILES[name]}")
        echo(*(f"  {parity}" for parity in parities[name]))
        echo(*(f"    {line}" for line in reports[name]["use"].splitlines()))
        if "readable" in reports[name]:
            echo(f"  {reports[name]['readable']}")
    if kept:
        echo(f"\n{subject.about['images']['note']}")
        echo(*([f"prediction: {_BITS}"] if subject.multi_label else []))
        echo(f"checksums, sizes and classes: {out / REPORT_FILE}")
    if discarded:
        raise ExitError("; ".join(discarded.values()) + (f"; kept: {', '.join(kept)}" if kept else ""))
    return 0


def _check_size(options: ExportOptions, config: Config, formats: tuple[Format, ...]) -> None:
    """Check `--size`.

    Raises:
      UserError: If it is combined with a format other than ONNX, or is out of range.
    """
    if options.size == (0, 0):
        return
    if formats != ("onnx",):
        raise UserError("--size works only with --format onnx alone; omit --size or the other formats")
    smallest = 2**config.num_stages if config.pooling == "floor" else 1
    if not all(smallest <= side <= MAX_SIDE for side in options.size):
        raise UserError(f"--size must be from {smallest} to {MAX_SIDE}, got {' '.join(map(str, options.size))}")


# --- network and images to compare on ---


def _subject(options: ExportOptions, config: Config) -> ExportedNetwork:
    config = dataclasses.replace(config, devices="1", fake_devices=0, precision="float32")
    devices, precision = start_devices(config)
    check_memory(dataclasses.replace(config, batch_size_per_device=max(BATCHES)), devices, flags=ExportOptions)
    restored = restore(options.run, config, options.checkpoint, devices, precision)
    network = folded(restored, config)
    about = {
        "classes": list(network.class_names),
        "colors": [list(color) for color in network.colors],
        "preprocessing": dataclasses.asdict(network.preprocessing) | _describe(network.pixels),
        "images": describe_images(*config.image_size, config.fit),
        "network": {name: getattr(config, name) for name in NETWORK_FIELDS},
        "reading": {name: getattr(config, name) for name in READING_FIELDS},
        "class_weights": [float(weight) for weight in restored.meta["class_weights"]],
        **_labels(options.run),
        **({"prediction": _BITS} if network.classes.multi_label else {}),
        "checkpoint": restored.which,
        "step": network.step,
        "made_by": f"segnet_jax {versions()['segnet_jax']}",
    }
    variables, trained = (jax.tree.map(np.asarray, each) for each in (network.variables, restored.variables))
    size = None if options.size == (0, 0) else options.size
    settings = {"size": size, "pixels": network.pixels, "multi_label": network.classes.multi_label}
    return ExportedNetwork(network.model, variables, trained, network.preprocessing, about, **settings)


def _describe(pixels: Pixels) -> dict[str, Any]:
    """Return the channels and the range of the images' values as metadata."""
    return {"channels": "RGB" if pixels == RGB else pixels.channels, "range": f"0..{2**pixels.bits - 1}"}


def _labels(run: str) -> dict[str, Any]:
    """Return the run's label rule as metadata; {} if there is none, or it is too large for a file's header."""
    stored = run_folder.labels_of(run)
    labels = None if stored is None else stored.as_json()
    return {"labels": labels} if labels and len(json.dumps(labels)) <= _MAX_LABELS else {}


def _images(options: ExportOptions, config: Config) -> dict[tuple[int, int], list[np.ndarray]]:
    """Return evenly spaced validation images by size: at the run's size and `ODD_SIZE`, or only at `--size`."""
    dataset = open_data(dataclasses.replace(config, **({"data": options.data} if options.data else {})))
    split = dataset.splits[validation_split(dataset)]
    chosen = evenly_spaced(options.images, len(split))
    sizes = {tuple(config.image_size), ODD_SIZE} if options.size == (0, 0) else {options.size}
    return {size: [streamed(split, size).read(index)[0] for index in chosen] for size in sorted(sizes, reverse=True)}


def _compare(
    subject: ExportedNetwork, exports: dict[Format, pathlib.Path], images: dict[tuple[int, int], list[np.ndarray]]
) -> dict[Format, list[Parity]]:
    """Load each export and compare it with the network at every image and batch size."""
    network = subject.jitted(subject.model, subject.variables)
    loaded = [MODULES[name].read(subject, path) for name, path in exports.items()]
    parities: dict[Format, list[Parity]] = {name: [] for name in exports}
    for size, pictures in images.items():
        for batch in BATCHES if subject.size is None else (1,):
            logger.info(f"comparing at {size[0]}x{size[1]} with batch size {batch}")
            for name, parity in zip(exports, compare(network, loaded, pictures, batch), strict=True):
                parities[name].append(parity)
    return parities


def _check_parity(parities: dict[Format, list[Parity]], accept_mismatch: bool) -> dict[Format, str]:
    """Return the formats to discard, each with the reason; with `accept_mismatch`, warn instead and return {}."""
    discarded = {}
    for name, of_format in parities.items():
        worst = min((parity for parity in of_format if not parity.holds), key=lambda each: each.agreement, default=None)
        if worst is not None and accept_mismatch:
            logger.warning(f"the {name} export does not match the network, but --accept-mismatch keeps it: {worst}")
        elif worst is not None:
            discarded[name] = (
                f"the {name} export does not match the network and is discarded: {worst} (--accept-mismatch keeps it)"
            )
    return discarded


# --- report and files ---


def _report(
    name: Format, subject: ExportedNetwork, path: pathlib.Path, out: pathlib.Path, parities: list[Parity]
) -> dict[str, Any]:
    """Return the report entry of one format, JSON-serializable."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    if name == "safetensors":
        files.append(path.with_name(model_card.FILE))
    return {
        "files": {each.relative_to(path.parent).as_posix(): sum_of_file(each) for each in files},
        "bytes": sum(each.stat().st_size for each in files),
        "use": MODULES[name].use(subject, out / path.name),
        "smallest_size": subject.smallest,
        **({"readable": stablehlo.warranty()} if name in ("stablehlo", "saved-model") else {}),
        "parity": [dataclasses.asdict(parity) for parity in parities],
        **subject.about,
        "versions": versions() | library_versions(name),
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    run_command(main)

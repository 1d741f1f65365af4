"""Export a trained network for other programs: `python -m segnet_jax.export --help`."""

import contextlib
import dataclasses
import datetime
import logging
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_run
from segnet_jax.config.flags import parse_flags
from segnet_jax.config.options import File, Folder, RunFolder
from segnet_jax.data.dataset import evenly_spaced
from segnet_jax.data.input_pipeline.cache import streamed
from segnet_jax.exporting import stablehlo
from segnet_jax.exporting.formats import FILES, MODULES, Format, check_libraries, library_versions
from segnet_jax.exporting.parity import Parity, compare
from segnet_jax.exporting.subject import ExportedNetwork, describe_images
from segnet_jax.inference.network import folded
from segnet_jax.reporting.environment import versions
from segnet_jax.runs.dataset import open_data, validation_split
from segnet_jax.runs.out_of_memory import check_memory
from segnet_jax.system import confined
from segnet_jax.system.command import run_command
from segnet_jax.system.compilation_cache import keep_no_paths
from segnet_jax.system.console import echo
from segnet_jax.system.errors import DiskFailed, DiskFull, ExitError, UserError, disk_refusal, is_disk_full, listed
from segnet_jax.system.files import atomic_write_json, check_place, sum_of_file, write_result
from segnet_jax.training.devices import start_devices
from segnet_jax.training.restored import CheckpointChoice, restore

logger = logging.getLogger(__name__)

DESCRIPTION = """Export a run's network, then load each exported file and check that its outputs match the network's.

Formats: stablehlo for JAX without this package, on CPU, NVIDIA GPU and TPU; onnx for onnxruntime and other runtimes,
needs pip install -e ".[onnx]"; safetensors for the weights only, BatchNorm not folded, with layer names as in
SegNet-Tutorial and tensor names as in PyTorch; saved-model for TensorFlow.

Every format but safetensors takes uint8 images [B,H,W,3] of any batch and image size, includes the preprocessing, and
returns the prediction, uint8 [B,H,W], and the logits, float32 [B,H,W,C]. Exports are float32, whatever precision the
run was trained in.

Example:
  python -m segnet_jax.export runs/demo-1 --format stablehlo onnx"""

EXPORT_FOLDER, REPORT_FILE = "export", "export.json"
BATCHES = (1, 3)
ODD_SIZE = (97, 131)  # compared besides the run's own size: odd at several stages, where border bugs show


@dataclass(frozen=True)
class ExportOptions:
    """Flags of `export`."""

    run: Annotated[RunFolder, tyro.conf.Positional]  # run folder
    format: tuple[Format, ...] = ("stablehlo",)  # formats to write
    out: Folder = ""  # output folder; default: RUN/export
    checkpoint: CheckpointChoice = "result"  # checkpoint to load; result: the one that result.json scores
    data: Folder = ""  # dataset for the comparison, such as "synthetic"; default: the one that the run was trained on
    images: int = 3  # number of validation images to compare on
    # keep exports whose outputs differ from the network's by more than the limits, with a warning
    accept_mismatch: bool = False
    overwrite: bool = False  # replace earlier exports in the output folder
    json: File = ""  # JSON file to write the export report to, besides export.json


def main() -> int:
    """Run the command."""
    options = parse_flags(ExportOptions, sys.argv[1:], prog="segnet_jax.export", description=DESCRIPTION)
    jax.config.update("jax_platforms", "cpu")  # GPUs may compute float32 products in TF32
    return export(options)


def export(options: ExportOptions) -> int:
    """Export to each format, compare with the network and print how to use the files; return the exit code.

    Raises:
      UserError: If the run, a library or the dataset is missing, or output files exist.
      ExitError: If an export cannot be written, or does not match the network; those that match are kept.
    """
    if options.images < 1:
        raise UserError(f"--images must be at least 1, got {options.images}")
    out = pathlib.Path(options.out or pathlib.Path(options.run) / EXPORT_FOLDER)
    check_place("json", options.json, made=out)
    json_path = pathlib.Path(options.json)
    if json_path.name in (REPORT_FILE, *FILES.values()) and json_path.absolute().parent == out.absolute():
        raise UserError(f"--json {options.json} is a file of the export itself; choose another file")
    formats = tuple(dict.fromkeys(options.format))
    config = read_run(options.run)
    for name in formats:
        check_libraries(name)
    if "onnx" in formats and (config.network, config.upsampling, config.encoder_addition) != (
        "segnet",
        "indices",
        False,
    ):
        raise UserError(
            f"--format onnx supports only SegNet with pooling indices, not the network of {options.run}; use "
            "--format stablehlo or safetensors"
        )
    earlier = _read_earlier_report(out, formats, options.overwrite)
    keep_no_paths()
    subject = _subject(options, config)
    images = _images(options, config)
    with _explain_disk_errors(out), tempfile.TemporaryDirectory(prefix=".export-", dir=_make_folder(out)) as temporary:
        exports = {name: pathlib.Path(temporary) / FILES[name] for name in formats}
        for name, path in exports.items():
            logger.info(f"writing {name}")
            MODULES[name].write(subject, path)
        parities = _compare(subject, exports, images)
        discarded = _check_parity(parities, options.accept_mismatch)
        kept = [name for name in formats if name not in discarded]
        reports = {name: _report(name, subject, exports[name], out, parities[name]) for name in kept}
        for name in kept:
            _move(exports[name], out / exports[name].name)
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
        echo(f"checksums, sizes and classes: {out / REPORT_FILE}")
    if discarded:
        raise ExitError("; ".join(discarded.values()) + (f"; kept: {', '.join(kept)}" if kept else ""))
    return 0


# --- output folder ---


def _read_earlier_report(out: pathlib.Path, formats: tuple[Format, ...], overwrite: bool) -> dict[str, Any]:
    """Return the folder's report of earlier exports, after checking that only files listed in it are overwritten.

    Raises:
      UserError: If a file exists and is not to be overwritten, or was not exported here.
    """
    existing = [FILES[name] for name in formats if os.path.lexists(out / FILES[name])]
    if existing and not overwrite:
        raise UserError(
            f"{out} already contains {listed(existing)}; add --overwrite, or choose another folder with --out"
        )
    path = out / REPORT_FILE
    try:
        report = confined.read_json(out, REPORT_FILE) if os.path.lexists(path) else {}
        if not isinstance(report, dict):
            raise TypeError("a report is a table")
        known = {file: checksum for name in report for file, checksum in report[name]["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is not an export report; move it away, or choose another folder with --out") from None
    files = [file for name in existing for file in _files_below(out, name)]
    if foreign := [file for file in files if known.get(file) != _checksum(out, file)]:
        raise UserError(
            f"{out} contains {listed(foreign)}, which differs from what was exported there and is not overwritten; "
            "move it away, or choose another folder with --out"
        )
    return report


def _files_below(out: pathlib.Path, name: str) -> list[str]:
    """Return a file, or the files of a folder, as named in the report."""
    if not os.path.isdir(out / name) or os.path.islink(out / name):
        return [name]
    return [file for inner in confined.names(out, name) for file in _files_below(out, f"{name}/{inner}")]


def _checksum(out: pathlib.Path, file: str) -> str:
    """Return the checksum of a file's content; empty if it is not a regular file."""
    with contextlib.suppress(OSError, UserError):
        return confined.sum_of(out, file, sys.maxsize)
    return ""


def _make_folder(out: pathlib.Path) -> pathlib.Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {out}: {error.strerror}; choose another with --out") from None
    return out


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
        "preprocessing": dataclasses.asdict(network.preprocessing) | {"channels": "RGB", "range": "0..255"},
        "images": describe_images(*config.image_size, config.fit),
        "network": {name: getattr(config, name) for name in NETWORK_FIELDS},
        "checkpoint": restored.which,
        "step": network.step,
        "made_by": f"segnet_jax {versions()['segnet_jax']}",
    }
    variables, trained = (jax.tree.map(np.asarray, each) for each in (network.variables, restored.variables))
    return ExportedNetwork(network.model, variables, trained, network.preprocessing, about)


NETWORK_FIELDS = (  # config fields needed to rebuild the network; none holds a path
    *("protocol", "image_size", "network", "encoder", "depth", "width", "pooling", "upsampling", "encoder_addition"),
    *("stage_convolutions", "stage_channels", "kernel_size"),
    *("decoder", "dropout", "conv_bias", "final_batch_norm", "batch_norm_epsilon", "output"),
)


def _images(options: ExportOptions, config: Config) -> dict[tuple[int, int], list[np.ndarray]]:
    """Return evenly spaced validation images by size: the run's and `ODD_SIZE`."""
    dataset = open_data(dataclasses.replace(config, **({"data": options.data} if options.data else {})))
    split = dataset.splits[validation_split(dataset)]
    chosen = evenly_spaced(options.images, len(split))
    sizes = {tuple(config.image_size), ODD_SIZE}
    return {size: [streamed(split, size).read(index)[0] for index in chosen] for size in sorted(sizes, reverse=True)}


def _compare(
    subject: ExportedNetwork, exports: dict[Format, pathlib.Path], images: dict[tuple[int, int], list[np.ndarray]]
) -> dict[Format, list[Parity]]:
    """Load each export and compare it with the network at every image and batch size."""
    network = subject.jitted(subject.model, subject.variables)
    loaded = [MODULES[name].read(subject, path) for name, path in exports.items()]
    parities: dict[Format, list[Parity]] = {name: [] for name in exports}
    for size, pictures in images.items():
        for batch in BATCHES:
            logger.info(f"comparing at {size[0]}x{size[1]} with batch size {batch}")
            for name, parity in zip(exports, compare(network, loaded, pictures, batch), strict=True):
                parities[name].append(parity)
    return parities


def _check_parity(parities: dict[Format, list[Parity]], accept_mismatch: bool) -> dict[Format, str]:
    """Return the formats to discard, each with the reason; with `accept_mismatch`, warn instead and return none."""
    discarded = {}
    for name, of_format in parities.items():
        worst = min((parity for parity in of_format if not parity.holds), key=lambda each: each.agreement, default=None)
        if worst is not None and accept_mismatch:
            logger.warning(f"the {name} export does not match the network, kept by --accept-mismatch: {worst}")
        elif worst is not None:
            discarded[name] = (
                f"the {name} export does not match the network and is discarded: {worst} (--accept-mismatch keeps it)"
            )
    return discarded


# --- report and files ---


def _report(
    name: Format, subject: ExportedNetwork, path: pathlib.Path, out: pathlib.Path, parities: list[Parity]
) -> dict[str, Any]:
    """Return the entry of one format in the report, JSON-serializable."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
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


def _move(path: pathlib.Path, target: pathlib.Path) -> None:
    """Move an export to its final path, replacing what is there; a folder is moved away first."""
    if target.is_dir() and not target.is_symlink():
        target.rename(path.with_name(f"old-{path.name}"))  # deleted with the temporary folder
    os.replace(path, target)


@contextlib.contextmanager
def _explain_disk_errors(out: pathlib.Path) -> Iterator[None]:
    """Turn disk failures into errors of one line."""
    try:
        yield
    except (UserError, ExitError):
        raise
    except Exception as error:  # each format's library raises its own exceptions for disk errors
        if is_disk_full(error):
            raise DiskFull(f"cannot export to {out}: no space left on its disk") from error
        if refusal := disk_refusal(error):
            raise DiskFailed(f"cannot export to {out}: {refusal}") from error
        raise


if __name__ == "__main__":
    run_command(main)

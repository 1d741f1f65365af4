"""Writes a trained network in forms that other programs run: `python -m segnet_jax.export --help`."""

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
from segnet_jax.data.input_pipeline.cache import streamed
from segnet_jax.exporting import stablehlo
from segnet_jax.exporting.formats import FILES, MODULES, Format, check_libraries, library_versions
from segnet_jax.exporting.parity import Parity, compare
from segnet_jax.exporting.subject import Subject
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
from segnet_jax.training.restored import Asked, restore

logger = logging.getLogger(__name__)

DESCRIPTION = """Writes a run's network for use elsewhere, reads it back, and compares it with the network itself.

Example:  python -m segnet_jax.export runs/demo-1 --format stablehlo onnx

Formats: stablehlo for JAX without this package, on CPU, NVIDIA GPU and TPU; onnx for onnxruntime and others, which
needs pip install -e ".[onnx]"; safetensors for the weights alone, with BatchNorm, by SegNet-Tutorial's names of layers
and PyTorch's of their tensors; saved-model for TensorFlow.

Each but the weights takes uint8 images [B,H,W,3] of any number and size, sees to their preprocessing, and gives the
prediction, uint8 [B,H,W], and the logits, float32 [B,H,W,C]. Whatever the run was trained in, this is float32."""

EXPORT_FOLDER, REPORT_FILE = "export", "export.json"
BATCHES = (1, 3)
ODD_SIZE = (97, 131)  # besides the run's own: odd at several stages, where borders are lost or doubled


@dataclass(frozen=True)
class Options:
    """What to export."""

    run: Annotated[str, tyro.conf.Positional]  # folder of the run
    format: tuple[Format, ...] = ("stablehlo",)  # one or several
    out: str = ""  # folder to write to, by default export/ in the run's
    checkpoint: Asked = "result"  # of the run; result: the one that its result is of
    data: str = ""  # where to take images to compare on, if not where the run was trained; "synthetic" renders some
    images: int = 3  # how many validation images to compare on
    overwrite: bool = False  # replace what was exported to that folder before
    json: str = ""  # file to write what was found to, besides export.json


def main() -> int:
    """The command."""
    options = parse_flags(Options, sys.argv[1:], prog="segnet_jax.export", description=DESCRIPTION)
    jax.config.update("jax_platforms", "cpu")  # a GPU would round products of float32 to fewer digits
    return export(options)


def export(options: Options) -> int:
    """Exports, compares, and prints what was found and how to use the files; returns the exit code.

    Raises:
      UserError: for a missing run, library or data, or files that are there already.
      ExitError: what was exported is not the network, or cannot be written; it is not kept then.
    """
    if options.images < 1:
        raise UserError(f"--images must be at least 1, got {options.images}")
    out = pathlib.Path(options.out or pathlib.Path(options.run) / EXPORT_FOLDER)
    check_place("json", options.json, made=out)
    place = pathlib.Path(options.json)
    if place.name in (REPORT_FILE, *FILES.values()) and place.absolute().parent == out.absolute():
        raise UserError(f"--json {options.json} is a file of the export itself: name another file")
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
            f"--format onnx knows SegNet with pooling indices alone, and {options.run} is a variant of it: take "
            "--format stablehlo or safetensors"
        )
    before = _earlier(out, formats, options.overwrite)
    keep_no_paths()
    subject = _subject(options, config)
    images = _images(options, config)
    with _telling_of_the_disk(out), tempfile.TemporaryDirectory(prefix=".export-", dir=_made(out)) as temporary:
        made = {name: pathlib.Path(temporary) / FILES[name] for name in formats}
        for name, path in made.items():
            logger.info(f"writing {name}")
            MODULES[name].write(subject, path)
        parities = _compare(subject, made, images)
        _check_parity(parities)
        told = {name: _told(name, subject, made[name], out, parities[name]) for name in formats}
        for path in made.values():
            _put(path, out / path.name)
        atomic_write_json(out / REPORT_FILE, before | told)
        if options.json:
            write_result(options.json, told)
    for name in formats:
        echo(f"\n{out / FILES[name]}")
        echo(*(f"  {parity}" for parity in parities[name]))
        echo(*(f"    {line}" for line in told[name]["use"].splitlines()))
        if "readable" in told[name]:
            echo(f"  {told[name]['readable']}")
    echo(f"\nsums, sizes and classes: {out / REPORT_FILE}")
    return 0


# --- before anything is computed ---


def _earlier(out: pathlib.Path, formats: tuple[Format, ...], overwrite: bool) -> dict[str, Any]:
    """What the folder's report says of earlier exports, after a look at what would be overwritten."""
    names = [FILES[name] for name in formats]
    there = [name for name in names if os.path.lexists(out / name)]
    if there and not overwrite:
        raise UserError(f"{out} holds {listed(there)} already: add --overwrite, or name another folder by --out")
    path = out / REPORT_FILE
    try:
        report = confined.read_json(out, REPORT_FILE) if os.path.lexists(path) else {}
        if not isinstance(report, dict):
            raise TypeError("a report is a table")
        known = {file: told for name in report for file, told in report[name]["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is no report of an export: move it away, or name another folder by --out") from None
    if foreign := [file for name in there for file in _files_below(out, name) if known.get(file) != _sum(out, file)]:
        raise UserError(
            f"{out} holds {listed(foreign)}, which is not what was exported there: nothing else is overwritten, "
            "move it away, or name another folder by --out"
        )
    return report


def _files_below(out: pathlib.Path, name: str) -> list[str]:
    """A file, or the files of a folder, as an export's report names them."""
    if not os.path.isdir(out / name) or os.path.islink(out / name):
        return [name]
    return [file for inner in confined.names(out, name) for file in _files_below(out, f"{name}/{inner}")]


def _sum(out: pathlib.Path, file: str) -> str:
    """The sum of a file's content; empty for what is no file."""
    with contextlib.suppress(OSError, UserError):
        return confined.sum_of(out, file, sys.maxsize)
    return ""


def _made(out: pathlib.Path) -> pathlib.Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; name another by --out") from None
    return out


# --- the network and what it is compared on ---


def _subject(options: Options, config: Config) -> Subject:
    config = dataclasses.replace(config, devices="1", fake_devices=0, precision="float32")
    devices, precision = start_devices(config)
    check_memory(dataclasses.replace(config, batch_size_per_device=max(BATCHES)), devices, flags=Options)
    restored = restore(options.run, config, options.checkpoint, devices, precision)
    network = folded(restored, config)
    about = {
        "classes": list(network.class_names),
        "colors": [list(color) for color in network.colors],
        "preprocessing": dataclasses.asdict(network.preprocessing) | {"channels": "RGB", "range": "0..255"},
        "network": {name: getattr(config, name) for name in NETWORK_FIELDS},
        "checkpoint": restored.which,
        "step": network.step,
        "made_by": f"segnet_jax {versions()['segnet_jax']}",
    }
    variables, trained = (jax.tree.map(np.asarray, each) for each in (network.variables, restored.variables))
    return Subject(network.model, variables, trained, network.preprocessing, about)


NETWORK_FIELDS = (  # of the config, such as are needed to build the network again; no path of a machine is told
    *("protocol", "image_size", "network", "encoder", "depth", "width", "pooling", "upsampling", "encoder_addition"),
    *("stage_convolutions", "stage_channels", "kernel_size"),
    *("decoder", "dropout", "conv_bias", "final_batch_norm", "batch_norm_epsilon"),
)


def _images(options: Options, config: Config) -> dict[tuple[int, int], list[np.ndarray]]:
    """Validation images, evenly spread, at the run's size and at an odd one."""
    dataset = open_data(dataclasses.replace(config, **({"data": options.data} if options.data else {})))
    split = dataset.splits[validation_split(dataset)]
    chosen = sorted({round(place) for place in np.linspace(0, len(split) - 1, min(options.images, len(split)))})
    sizes = {tuple(config.image_size), ODD_SIZE}
    return {size: [streamed(split, size).read(index)[0] for index in chosen] for size in sorted(sizes, reverse=True)}


def _compare(
    subject: Subject, made: dict[Format, pathlib.Path], images: dict[tuple[int, int], list[np.ndarray]]
) -> dict[Format, list[Parity]]:
    """Reads everything back and holds it against the network."""
    network = subject.jitted(subject.model, subject.variables)
    exported = [MODULES[name].read(subject, path) for name, path in made.items()]
    found: dict[Format, list[Parity]] = {name: [] for name in made}
    for size, pictures in images.items():
        for batch in BATCHES:
            logger.info(f"comparing at {size[0]}x{size[1]}, {batch} at once")
            for name, parity in zip(made, compare(network, exported, pictures, batch), strict=True):
                found[name].append(parity)
    return found


def _check_parity(parities: dict[Format, list[Parity]]) -> None:
    for name, found in parities.items():
        for parity in found:
            if not parity.holds:
                raise ExitError(f"the {name} export is not the network, and is not kept: {parity}")


# --- what is left ---


def _told(
    name: Format, subject: Subject, path: pathlib.Path, out: pathlib.Path, parities: list[Parity]
) -> dict[str, Any]:
    """What the report says of an export."""
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


def _put(path: pathlib.Path, target: pathlib.Path) -> None:
    """Moves what was made to its place; what was there goes first, where it is a folder."""
    if target.is_dir() and not target.is_symlink():
        target.rename(path.with_name(f"old-{path.name}"))  # deleted with the temporary folder
    os.replace(path, target)


@contextlib.contextmanager
def _telling_of_the_disk(out: pathlib.Path) -> Iterator[None]:
    """Tells in one line that something could not be written."""
    try:
        yield
    except (UserError, ExitError):
        raise
    except Exception as error:  # each format's library has a kind of its own for what a disk refuses
        if is_disk_full(error):
            raise DiskFull(f"cannot export to {out}: no room on its disk") from error
        if refusal := disk_refusal(error):
            raise DiskFailed(f"cannot export to {out}: {refusal}") from error
        raise


if __name__ == "__main__":
    run_command(main)

"""Labels images, folders of them, videos and camera frames: `python -m segnet_jax.predict --help`."""

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
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_flags
from segnet_jax.constants import VOID
from segnet_jax.data.images.picture_header import MAX_PIXELS, largest_image
from segnet_jax.data.labels.classes import CAMVID, ClassTable
from segnet_jax.data.labels.label_mapping import TUTORIAL, Legend, rule_of
from segnet_jax.inference.labelling import label_all
from segnet_jax.inference.network import folded, unfolded
from segnet_jax.inference.outputs import Entry, Outputs, Scoring, check_nothing_there, endings_of, find_labels
from segnet_jax.inference.predictor import Predictor, Size, Sizing
from segnet_jax.inference.sampling import check_samples
from segnet_jax.inference.sources import Source, find_sources, name_outputs
from segnet_jax.inference.video import library
from segnet_jax.metrics.confusion import scores
from segnet_jax.reporting.tables import percent, print_table
from segnet_jax.runs import run_folder
from segnet_jax.runs.dataset import reading_of
from segnet_jax.runs.out_of_memory import check_memory
from segnet_jax.system.command import run_command
from segnet_jax.system.console import echo
from segnet_jax.system.disk import DiskRetry
from segnet_jax.system.errors import OutOfMemory, Stopped, UserError, UserErrors, is_out_of_memory
from segnet_jax.system.files import check_place, write_result
from segnet_jax.system.signals import Stop
from segnet_jax.training.devices import start_devices
from segnet_jax.training.restored import Asked, restore

logger = logging.getLogger(__name__)

DESCRIPTION = """Labels every pixel of images, of all images in folders, of videos (extra `video`), or of what a camera
sees (its number, such as 0).

For a.jpg it writes a.png, whose values are class ids and which shows their colours, and a_overlay.jpg; for a.mp4,
a_overlay.mp4. What is there already is never overwritten.

Example:  python -m segnet_jax.predict runs/demo-1 photos/ --out labelled --json labelled.json

Large:    python -m segnet_jax.predict runs/demo-1 map.png --tile 512 512"""


@dataclass(frozen=True)
class Options:
    """What to label, and how."""

    run: Annotated[str, tyro.conf.Positional]  # folder of the run
    paths: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # images, folders, videos, numbers of cameras
    out: str = ""  # folder for all outputs; default: the next free RUN/predictions-NUMBER
    checkpoint: Asked = "result"  # of the run; result: the one that its result is of
    size: Size = "trained"  # what the network sees, as in training with its bars; or its height and width
    tile: tuple[int, int] = (0, 0)  # height and width of tiles, for images too large at once; taken at native size
    overlap: int = 64  # pixels that tiles share, of which the outer quarters do not count
    key: bool = True  # a key of the classes beneath each overlay, which is higher by it
    confidence: bool = False  # also NAME_confidence.png, how sure the network is, 0..255
    samples: int = 0  # find the mean of so many samples under dropout (Bayesian SegNet)
    uncertainty: bool = False  # of samples, also NAME_entropy.png, NAME_information.png and NAME_variance.png, 0..255
    frames: bool = False  # of a video, also NAME_frames/000001.png and so on, with class ids
    labels: str = ""  # folder of the images' labels: prints scores, and writes NAME_errors.png
    void: int = -1  # the value of void in labels; -1: as the run reads labels
    json: str = ""  # file to write a summary to
    devices: str = "all"  # how many devices: a number or "all"
    fake_devices: int = 0  # pretend that the CPU is so many devices
    batch_size_per_device: int = 4  # images a device takes at once; what is found does not depend on it
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of activations

    def __post_init__(self):
        """Refuses what no label can hold.

        Raises:
          UserError: for an id that is none of a byte.
        """
        if not -1 <= self.void <= VOID:
            raise UserError(f"--void must be between 0 and {VOID}, got {self.void}")


def main() -> int:
    """The command."""
    return predict(parse_flags(Options, sys.argv[1:], prog="segnet_jax.predict", description=DESCRIPTION))


def predict(options: Options) -> int:
    """Labels everything, and tells at the end what could not be read; returns the exit code.

    Raises:
      UserError: for a mistake in the options, before anything is written; `UserErrors` for the inputs that are at
        fault, when all others are done.
      ExitError: somebody asked to stop, or the disk is full; what was written before is whole.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop(first="what is begun is written first"))
        with stop.at_once():
            check_place("json", options.json, made=options.out)
            if options.json and os.path.lexists(options.json):
                raise UserError(f"--json {options.json} is there already: nothing is overwritten, name another file")
            config = dataclasses.replace(
                files.read_run(options.run),
                devices=options.devices,
                fake_devices=options.fake_devices,
                batch_size_per_device=options.batch_size_per_device,
                precision=options.precision,
            )
            sizing = Sizing.of(config, options.size, options.tile, options.overlap)
            if options.uncertainty and not options.samples:
                raise UserError("--uncertainty is of samples: add --samples 20")
            wanted = {"confidence": options.confidence, "frames": options.frames, "errors": bool(options.labels)}
            wanted["uncertainty"] = options.uncertainty
            sources = name_outputs(find_sources(options.paths), partial(endings_of, **wanted))
            labels = find_labels(sources, options.labels, config.label_suffix) if options.labels else {}
            if options.out:
                check_nothing_there(_files(sources, pathlib.Path(options.out), wanted))
            if any(source.kind != "image" for source in sources):
                library()  # that it is missing is told before anything is done
            devices, precision = start_devices(config)
            if sizing.size == "trained" and not sizing.tile:
                check_memory(dataclasses.replace(config, batch_size_per_device=1), devices, flags=Options)
            restored = restore(options.run, config, options.checkpoint, devices, precision)
            network = unfolded(restored, config) if options.labels else folded(restored, config)
            if options.samples:
                check_samples(config.dropout, options.samples, options.run)
            per_device = config.batch_size_per_device
            if all(source.kind == "image" for source in sources) and not sizing.tile:
                per_device = min(per_device, -(-len(sources) // devices.total))
            predictor = Predictor(network, devices, per_device, sizing, options.samples, bool(options.labels))
            scoring = _scoring(options, config, network.classes, sizing) if options.labels else None
            out = _make_folder(options)
        room = DiskRetry(out, waits=False, stop=stop)
        outputs = Outputs(
            folder=out,
            classes=network.classes,
            write=room,
            key=options.key,
            confidence=options.confidence,
            uncertainty=options.uncertainty,
            frames=options.frames,
            labels=labels,
            scoring=scoring,
            reading=reading_of(config),
            max_pixels=largest_image() if sizing.tile else MAX_PIXELS,
        )
        started = time.monotonic()
        with _telling_of_memory():
            entries, faults = label_all(sources, predictor, outputs, stop)
        seconds = time.monotonic() - started

        # --- what has come of it ---
        done = [entries[source] for source in sources if source in entries]
        found = [fault for source in sources for fault in faults.get(source, ())]
        summary = {
            "run": options.run,
            "checkpoint": restored.which,
            "step": network.step,
            "out": str(out),
            "device": str(devices),
            "precision": precision,
            "seconds": seconds,
            "num_inputs": len(sources),
            "num_done": len(done),
            **_tell(done, out, seconds, network.classes),
            "inputs": [entry.row for entry in done],
            "faults": [dataclasses.asdict(fault) for fault in found],
        }
        if options.json:
            room(lambda: write_result(options.json, summary))
        if stop.requested():
            raise Stopped(stop.exit_code, f"stopped after {len(done)} of {len(sources)} inputs")
        if found:
            raise UserErrors(f"{len(faults)} of {len(sources)} inputs", found)
        return 0


def _files(sources: Sequence[Source], folder: pathlib.Path, wanted: dict[str, bool]) -> Iterator[pathlib.Path]:
    for source in sources:
        yield from (folder / f"{source.name}{ending}" for ending in endings_of(source, **wanted))


def _make_folder(options: Options) -> pathlib.Path:
    """Makes the folder for the outputs, `--out` or the next free RUN/predictions-NUMBER."""
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
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; name another by --out") from None


def _scoring(options: Options, config: Config, classes: ClassTable, sizing: Sizing) -> Scoring:
    """How labels are read: as the run stores, else, of older runs, as its config says."""
    reading, stored = reading_of(config), run_folder.labels_of(options.run)
    if stored is not None:
        rule = stored.rule
    else:
        ids = ((class_id, class_id) for class_id in range(len(classes)))
        own = Legend("the run", classes, (*ids, (VOID, VOID)))
        rule = rule_of(TUTORIAL if classes.names == CAMVID.names else own, reading)
    if options.void >= 0:
        kept = tuple(each for each in rule.ids if each[1] != VOID and each[0] != options.void)
        rule = dataclasses.replace(rule, ids=(*kept, (options.void, VOID)))
    if not sizing.is_as_evaluated:
        logger.info(
            "note: the scores are of the images at their own size; `evaluate` scores them at that of the training"
        )
    return Scoring(rule, reading, sizing)


def _tell(entries: Sequence[Entry], out: pathlib.Path, seconds: float, classes: ClassTable) -> dict[str, Any]:
    """Prints what was found in all of them, and returns it for the summary."""
    echo(f"labelled {len(entries)} in {seconds:.1f} s: {out}")
    if not entries:
        return {}
    counts = sum(entry.counts for entry in entries)
    shares = counts / counts.sum()
    ordered = [f"{classes.names[i]} {percent(shares[i])}" for i in np.argsort(-shares, kind="stable") if counts[i]]
    echo(f"pixels: {', '.join(ordered)}")
    told = {"class_shares": dict(zip(classes.names, shares.tolist(), strict=True))}
    confusions = [entry.confusion for entry in entries if entry.confusion is not None]
    if not np.any(confusions):
        return told
    confusion = sum(confusions)
    print_table(scores(confusion), classes)
    echo(f"scored on the {len(confusions)} images that have a label")
    return told | {"num_scored": len(confusions), "miou": scores(confusion).miou, "confusion": confusion}


@contextlib.contextmanager
def _telling_of_memory() -> Iterator[None]:
    """Tells what could fit where a device or the host runs out of memory."""
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

"""Looks at a folder of images and labels before it is trained on: `python -m segnet_jax.doctor --help`."""

import dataclasses
import os
import pathlib
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import rich.box
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_flags
from segnet_jax.data import sequences
from segnet_jax.data.dataset import Dataset
from segnet_jax.data.images.decode import read_image
from segnet_jax.data.images.fit import Fit, fit_record
from segnet_jax.data.label_files.interpretation.class_table_draft import table_to_edit
from segnet_jax.data.label_files.scan import scan
from segnet_jax.data.open_dataset import label_files
from segnet_jax.reporting.figures import batch_picture
from segnet_jax.reporting.sheet import is_asked_for, sheet_png
from segnet_jax.runs.dataset import open_data, reading_of, warn_of_sizes
from segnet_jax.runs.dataset_checks import Examination, Suggestion, as_json, examine, suggest, suggested_size
from segnet_jax.system.command import run_command
from segnet_jax.system.console import echo
from segnet_jax.system.errors import Fault, UserError, UserErrors, listed, shown
from segnet_jax.system.files import atomic_write_bytes, atomic_write_text, check_place, is_result, write_result

DESCRIPTION = """Looks at every image and label of a folder, and tells all faults at once, each with a fix to paste.

Example:  python -m segnet_jax.doctor photos --picture look.png

Exit 0: it can be trained on, and the last line is the command for that. Exit 2: it has faults."""

_MOST_PICTURES = 16
_MOST_COMPARED = 4  # images by each of several readings


@dataclass(frozen=True)
class Options:
    """What to look at; the flags from --images to --val-fraction are those of `train`."""

    data: Annotated[str, tyro.conf.Positional]  # the folder
    json: str = ""  # file to write all that is found to
    picture: str = ""  # PNG to draw some images to, with their labels laid over them
    classes: str = ""  # file to write a class table to, for editing: a line for each value or color of the labels
    images: str = ""  # only images whose names match, such as "*.jpg"
    label_files: str = ""  # only label files whose paths match, such as "*masks_a*"
    label_suffix: str = ""  # what follows an image's name in its label's, such as _mask; empty: found from the folder
    map: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()  # OLD=NEW, values of label files; 255 is void
    labels_start_at: int = -1  # the value of the first class in label files; smaller ones are void; -1: not stated
    labels_as: Literal["auto", "values", "colors"] = "auto"  # what palette and grey labels store, where both would fit
    threshold: int = 0  # two classes, the second from this value of a label on, such as 128 for JPEG masks; 0: off
    unknown_color: Literal["error", "ignore"] = "error"  # colors of labels that mean no class; ignore: they are void
    mostly_void: bool = False  # accept labels of which more than half is void
    exif: Literal["refuse", "apply", "ignore", "by-label"] = "refuse"  # of images that carry an EXIF rotation
    resize_labels: Literal["off", "nearest"] = "off"  # bring labels of another size than their image to its size
    image_range: tuple[int, int] = (0, 0)  # black and white of images of 16 bits, such as 0 4095; 0 0: refuse them
    follow_links: bool = False  # read files that links lead to out of the folder
    val_fraction: float = 0.0  # deal so much of the training and validation images anew to validation; 0: as they are
    split_rule: Literal["tutorial", "matlab", "trainval", "leave-out"] = "tutorial"  # how CamVid's frames are split
    leave_out: str = ""  # the sequence that --split-rule leave-out validates on
    leave_out_train: int = 0  # train only on the first N frames of --leave-out, validate on its others


def main() -> int:
    """The command."""
    return doctor(parse_flags(Options, sys.argv[1:], prog="segnet_jax.doctor", description=DESCRIPTION))


def doctor(options: Options) -> int:
    """Looks, prints what was found, and writes what was asked for; returns the exit code.

    Raises:
      UserError: with all faults.
    """
    for flag in ("json", "picture", "classes"):
        _check_writable(flag, getattr(options, flag), options.data)
    config = _config_of(options)
    if options.classes:
        return _write_classes(options, config)
    found = examine(lambda: open_data(config))
    if options.json:
        told = as_json(found) | ({} if found.faults else {"command": shlex.join(_command(found, config))})
        if found.dataset is not None and (neighbours := _audit(found.dataset)):
            told["audit"] = sequences.as_json(neighbours)
        write_result(options.json, told)
    if found.dataset is not None:
        for line in (*found.dataset.notes, *(f"warning: {warning}" for warning in found.warnings)):
            echo(line)
    if found.faults:
        fixes = dict.fromkeys(fault.fix for fault in found.faults if fault.fix.startswith("--"))
        choices = next((fault.choices for fault in found.faults if fault.choices), ())
        if options.picture and choices:
            _draw_choices(options, config, choices)
        if fixes:
            mended = " ".join([_prog("doctor"), shlex.join(_given(config)), *fixes])
            echo(f"see whether the fixes that are flags do:\n  {mended}")
        raise UserErrors(options.data, found.faults)
    suggestion = suggest(found.dataset, found.counts)
    _print_table(found, suggestion)
    _print_sizes(found.dataset, suggestion)
    if neighbours := _audit(found.dataset):
        echo("\n".join(sequences.in_words(neighbours)))
    if options.picture:
        _draw(found.dataset, (suggestion.image_size, suggestion.fit), options.picture)
        echo(f"drew {options.picture}: see whether the colors lie where they should")
    echo(f"no fault; to train:\n  {shlex.join(_command(found, config))}")
    return 0


def _config_of(options: Options) -> Config:
    wishes = vars(options).keys() & {item.name for item in dataclasses.fields(Config)}
    return dataclasses.replace(Config(), **{name: getattr(options, name) for name in wishes})


def _check_writable(flag: str, path: str, data: str) -> None:
    """Refuses, before anything is read, a file that cannot be written, or may be one of the data set's."""
    check_place(flag, path, is_ours=is_asked_for if flag == "picture" else is_result)
    place = pathlib.Path(path)
    if path and place.exists() and place.resolve().is_relative_to(pathlib.Path(data).resolve()):
        raise UserError(f"--{flag} {path} is there already, among the data: nothing is overwritten; name another file")


def _command(found: Examination, config: Config) -> list[str]:
    """The command that trains on the folder."""
    suggestion = suggest(found.dataset, found.counts)
    selecting = ["--result-checkpoint", "last"] if config.split_rule == "trainval" else []
    return [*_prog("train").split(), "--data", *_given(config), *selecting, *suggestion.flags()]


def _prog(name: str) -> str:
    return f"python -m segnet_jax.{name}"


def _given(config: Config) -> list[str]:
    """The folder and the flags that were given with it."""
    words = [config.data]
    for item in dataclasses.fields(reading_of(config)):
        value = getattr(config, item.name)
        if value != getattr(Config(), item.name):
            flag = f"--{item.name.replace('_', '-')}"
            if item.name == "image_range":
                words += [flag, *map(str, value)]
            elif isinstance(value, bool):
                words.append(flag)
            else:
                each = value if isinstance(value, tuple) else (value,)
                words += [word for one in each for word in (flag, str(one))]
    words += ["--split-rule", config.split_rule] if config.split_rule != Config.split_rule else []
    words += ["--leave-out", config.leave_out] if config.leave_out else []
    return words + (["--leave-out-train", str(config.leave_out_train)] if config.leave_out_train else [])


def _print_table(found: Examination, suggestion: Suggestion) -> None:
    """Each class with its share of the labelled pixels and its weight."""
    classes, counts = found.dataset.classes, found.counts
    table = Table(box=rich.box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("id", justify="right")
    table.add_column("class", overflow="fold", min_width=8)
    for split in counts:
        table.add_column(f"{split} %", justify="right", no_wrap=True)
    table.add_column("weight", justify="right", no_wrap=True)
    for place, name in enumerate(classes.names):
        shares = [100 * each.pixels[place] / max(1, each.pixels.sum()) for each in counts.values()]
        told = [f"{share:.2f}" if share else "none" for share in shares]
        table.add_row(str(place), Text(shown(name)), *told, f"{suggestion.weights[place]:.2f}")
    voids = [f"{100 * (1 - each.pixels.sum() / max(1, each.total)):.2f}" for each in counts.values()]
    table.add_row("255", "void, of all", *voids, "", style="dim")
    Console(file=sys.stdout, highlight=False).print(table)


def _print_sizes(dataset: Dataset, suggestion: Suggestion) -> None:
    splits = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    echo(f"images   {splits}")
    if dataset.sizes:
        by_number = sorted(dataset.sizes.items(), key=lambda item: -item[1])
        echo(f"sizes    {listed([f'{h}x{w} ({number} images)' for (h, w), number in by_number])}")
    height, width = suggestion.image_size
    how = {"stretch": "", "letterbox": " --fit letterbox, for their shapes differ", "crop": " --fit crop"}
    echo(f"suggests --image-size {height} {width}{how[suggestion.fit]}; --class-weights {suggestion.class_weights}")
    config = dataclasses.replace(Config(), image_size=suggestion.image_size, fit=suggestion.fit)
    warn_of_sizes(config, dataset)


def _audit(dataset: Dataset) -> sequences.Audit | None:
    """Neighbours across splits, where names tell more than one sequence, or one in several splits."""
    found = sequences.audit({name: split.names for name, split in dataset.splits.items()})
    return found if found is not None and (len(found.sequences) > 1 or found.neighbours) else None


def _draw(
    dataset: Dataset, size_and_fit: tuple[tuple[int, int], Fit], path: str, title: str = "", most: int = _MOST_PICTURES
) -> None:
    """Draw a sheet of samples from all splits, evenly spread."""
    places = [(split, index) for split in dataset.splits.values() for index in range(len(split))]
    chosen = sorted({round(place) for place in np.linspace(0, len(places) - 1, most)})
    samples = (split.read(index) for split, index in (places[place] for place in chosen))
    fitted = [fit_record(*sample, *size_and_fit) for sample in samples]
    images, labels = (np.stack(each) for each in zip(*fitted, strict=True))
    title = title or f"{len(chosen)} of {len(places)} images with their labels"
    batch_picture(images, labels, dataset.classes, path, title, max_images=most, asked_for=True)


def _draw_choices(options: Options, config: Config, choices: Sequence[str]) -> None:
    """Draw the labels as each of several readings has them, one below the other."""
    sheets = []
    with tempfile.TemporaryDirectory() as folder:
        for number, flags in enumerate(choices):
            words = [options.data, *_given(config)[1:], *shlex.split(flags)]
            chosen = parse_flags(Options, words, prog="segnet_jax.doctor", description=DESCRIPTION)
            try:
                dataset = open_data(_config_of(chosen))
            except UserError as error:
                echo(f"{flags}: cannot be drawn: {error.faults[0].what[:200]}")
                continue
            sizes = dataset.sizes or {dataset.splits["train"].read(0)[1].shape: 1}
            path = os.path.join(folder, f"{number}.png")
            _draw(dataset, suggested_size(sizes), path, flags, _MOST_COMPARED)
            sheets.append(Image.fromarray(read_image(pathlib.Path(path), path)))
        if sheets:
            atomic_write_bytes(options.picture, sheet_png(sheets, asked_for=True))
            echo(f"drew {options.picture}: the labels by each of the readings, one below the other")


def _write_classes(options: Options, config: Config) -> int:
    """Writes a class table to be edited, with what the labels hold."""
    path, reading = pathlib.Path(options.classes), reading_of(config)
    if os.path.lexists(path):
        raise UserError(f"--classes {path} is there already: nothing is overwritten; delete it, or name another file")
    faults: list[Fault] = []
    found = scan(label_files(options.data, reading), reading, faults)
    if not found:
        raise UserErrors(options.data, faults)
    atomic_write_text(path, table_to_edit(found, max(0, config.labels_start_at)))
    echo(f"wrote {path}: change the names in it, then\n  {_prog('doctor')} {shlex.join(_given(config))}")
    return 0


if __name__ == "__main__":
    run_command(main)

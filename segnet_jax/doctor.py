"""Check a dataset folder before training: `python -m segnet_jax.doctor --help`."""

import dataclasses
import fnmatch
import os
import pathlib
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import tyro
from PIL import Image

from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_protocol
from segnet_jax.config.flag_specs import (
    ClassNames,
    DataFolder,
    File,
    GrayRange,
    Pattern,
    Section,
    SequenceName,
    Suffix,
    ValueMap,
    flags_of,
    words_of,
)
from segnet_jax.config.flags import parse_flags
from segnet_jax.constants import VOID
from segnet_jax.data import sequences
from segnet_jax.data.dataset import Dataset
from segnet_jax.data.images.decode import read_image
from segnet_jax.data.images.fit import fit_sample
from segnet_jax.data.images.suffixes import IMAGE_SUFFIXES
from segnet_jax.data.label_files.interpretation.class_table_draft import draft_class_table
from segnet_jax.data.label_files.scan import scan
from segnet_jax.data.open_dataset import label_files
from segnet_jax.reporting.class_frequencies import print_class_frequencies
from segnet_jax.reporting.figures import batch_picture
from segnet_jax.reporting.sheet import is_asked_for, sheet_png
from segnet_jax.runs.dataset_checks import DatasetReport, Suggestion, as_json, check_dataset, suggest, suggested_size
from segnet_jax.runs.default_recipe import choose_protocol, has_accelerator, is_own_folder, suggested_steps
from segnet_jax.runs.load_dataset import open_data, read_options_of, size_warning
from segnet_jax.system.command import run_command
from segnet_jax.system.command_name import as_called
from segnet_jax.system.console import echo
from segnet_jax.system.errors import Fault, UserError, UserErrors, listed
from segnet_jax.system.files import (
    atomic_write_bytes,
    atomic_write_text,
    check_distinct,
    check_place,
    is_result,
    write_result,
)

DESCRIPTION = """Read every image and label of a dataset folder, and report all faults at once, each with a fix.

Exit code 0: the folder is ready for training; the last line is the command to train on it. Exit code 2: it has faults.

Example:
  python -m segnet_jax.doctor photos --picture look.png"""

OUTPUTS = ("json", "picture", "classes")
"""Flags that name an output file."""

_MAX_PICTURES = 16
_MAX_PICTURES_PER_READING = 4  # when several interpretations are compared


@dataclass(frozen=True)
class DoctorOptions:
    """Flags of `doctor`; those from `images` on have the same meaning as in `train`."""

    SECTIONS: ClassVar[tuple[Section, ...]] = (
        Section("output", "json", ("json", "picture", "page", "pick", "classes")),
        Section("how to read the folder", "images", ("images", "label_files", "map", "labels_start_at", "labels_as")),
        Section("splits", "val_fraction", ("val_fraction",)),
    )

    data: Annotated[DataFolder, tyro.conf.Positional]  # dataset folder
    json: File = ""  # JSON file to write the findings to
    picture: File = ""  # PNG file to draw images with overlaid labels to, 16 to a page
    page: int = 1  # page of --picture; pages are evenly spaced selections that together show every image once
    # draw only images whose names match this pattern, such as "night_*"; may be repeated
    pick: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN"), tyro.conf.UseAppendAction] = ()
    classes: File = ""  # class table to create for editing, one line per value or color found in the labels
    images: Pattern = ""  # use only images of the folder whose names match this pattern, such as "*.jpg"
    label_files: Pattern = ""  # use only label files of the folder whose paths match this pattern, such as "*masks_a*"
    label_suffix: Suffix = ""  # suffix of label names after the image's name, such as _mask; empty: detect it
    map: ValueMap = ()  # read label value OLD as NEW, such as 255=1; may be repeated
    labels_start_at: int = -1  # label value of the first class; smaller values are void; -1: not specified
    labels_as: Literal["auto", "values", "colors"] = "auto"  # what palette and gray labels store, if it is ambiguous
    threshold: int = 0  # two classes: label values >= this are the second class, e.g. 128 for JPEG masks; 0: off
    unknown_color: Literal["error", "ignore"] = "error"  # on label colors of no class; ignore: read as void
    mask_order: ClassNames = ()  # masks of one class each: classes that may overlap, from below to the top
    unmasked: Literal["auto", "background", "void"] = "auto"  # masks of one class each: what pixels in no mask are
    multi_label: bool = False  # masks of one class each: a pixel has all classes of its masks, at most 7 in all
    mostly_void: bool = False  # accept labels that are more than half void
    exif: Literal["refuse", "apply", "ignore", "by-label"] = "refuse"  # how to read images with an EXIF rotation
    resize_labels: Literal["off", "nearest"] = "off"  # resize labels whose size differs from their image's
    channels: int = 3  # image channels; 3: RGB, converted if necessary; others, such as 1 or 4: read as stored
    image_bits: Literal["8", "16"] = "8"  # bits per channel; 16 reads 16-bit PNG or TIFF files as stored, 0 to 65535
    image_range: GrayRange = (0, 0)  # black and white values of 16-bit images, such as 0 4095; 0 0: refuse them
    follow_links: bool = False  # follow symbolic links that lead out of the dataset folder
    val_fraction: float = 0.0  # fraction of the images to validate on, such as 0.2; 0: the dataset's own split
    split_rule: Literal["tutorial", "matlab", "trainval", "leave-out"] = "tutorial"  # how to split CamVid's frames
    leave_out: SequenceName = ""  # with --split-rule leave-out: validate on this sequence; train on the others
    leave_out_train: int = 0  # train on the first N frames of --leave-out and validate on the rest; 0: see --leave-out


def main() -> int:
    """Run the command."""
    return doctor(parse_flags(DoctorOptions, sys.argv[1:], prog="segnet_jax.doctor", description=DESCRIPTION))


def doctor(options: DoctorOptions) -> int:
    """Check a dataset folder, print the findings and write the requested files; return the exit code.

    Raises:
      UserError: If the folder has faults; the message lists them.
    """
    check_distinct({f"--{flag}": getattr(options, flag) for flag in OUTPUTS})
    for flag in OUTPUTS:
        _check_writable(flag, getattr(options, flag), options.data)
    if (options.pick or options.page != 1) and not options.picture:
        raise UserError("--pick and --page select images for --picture: add --picture FILE.png")
    config = _config_of(options)
    if options.classes:
        return _write_classes(options, config)
    found = check_dataset(lambda: open_data(config))
    if options.json:
        findings = as_json(found, has_accelerator()) | (
            {} if found.faults else {"command": shlex.join(_command(found, config))}
        )
        if found.dataset is not None and (audit := _audit(found.dataset)):
            findings["audit"] = sequences.as_json(audit)
        write_result(options.json, findings)
    if found.dataset is not None:
        for line in (*found.dataset.notes, *(f"warning: {warning}" for warning in found.warnings)):
            echo(as_called(line))
    if found.faults:
        fixes = dict.fromkeys(fault.fix for fault in found.faults if fault.fix.startswith("--"))
        choices = next((fault.choices for fault in found.faults if fault.choices), ())
        if options.picture and choices:
            _draw_choices(options, config, choices)
        if fixes:
            command = " ".join([_called("doctor"), shlex.join(_data_flags(config)), *fixes])
            echo(f"to check the suggested flags, run:\n  {command}")
        raise UserErrors(options.data, found.faults)
    suggestion = suggest(found.dataset, found.counts, has_accelerator())
    print_class_frequencies(found.dataset.classes, found.counts, suggestion.weights)
    _print_sizes(found.dataset, suggestion)
    if audit := _audit(found.dataset):
        echo("\n".join(sequences.describe_audit(audit)))
    if options.picture:
        shown_here = _draw(found.dataset, options, options.picture)
        echo(f"wrote {options.picture} ({shown_here}): check that the colors lie on the right objects")
    echo(f"no faults found; to train, run:\n  {shlex.join(_command(found, config))}")
    return 0


def _config_of(options: DoctorOptions) -> Config:
    names = vars(options).keys() & {item.name for item in dataclasses.fields(Config)}
    return dataclasses.replace(Config(), **{name: getattr(options, name) for name in names})


def _check_writable(flag: str, path: str, data: str) -> None:
    """Check that an output file can be written and is not a file of the dataset."""
    check_place(flag, path, is_ours=is_asked_for if flag == "picture" else is_result)
    file = pathlib.Path(path)
    if path and file.exists() and file.resolve().is_relative_to(pathlib.Path(data).resolve()):
        raise UserError(f"--{flag} {path} is a file of the dataset and is not overwritten; choose another file")


def _command(found: DatasetReport, config: Config) -> list[str]:
    """Return the command that trains on the folder."""
    suggestion = suggest(found.dataset, found.counts, has_accelerator())
    selecting = ["--result-checkpoint", "last"] if config.split_rule == "trainval" else []
    protocol, _ = choose_protocol(None)
    # The default recipe would download missing weights, but the command must work offline.
    recipe = ["--protocol", protocol] if is_own_folder(config.data) or protocol == "scratch" else []
    if recipe:
        steps = suggested_steps(len(found.dataset.splits["train"]), suggestion.batch_size_per_device)
        recipe += ["--steps", str(steps)] if steps != read_protocol(protocol, Config()).steps else []
    flags = [*selecting, *recipe, *suggestion.flags()]
    return [*_called("train").split(), "--data", *_data_flags(config), *flags]


def _called(name: str) -> str:
    return as_called(f"python -m segnet_jax.{name}")


def _data_flags(config: Config) -> list[str]:
    """Return the dataset folder and the flags for reading it that differ from the defaults."""
    words, flags = [config.data], {flag.name: flag for flag in flags_of(Config)}
    for item in dataclasses.fields(read_options_of(config)):
        value = getattr(config, item.name)
        if value != getattr(Config(), item.name):
            words += words_of(flags[item.name], value)
    words += ["--split-rule", config.split_rule] if config.split_rule != Config.split_rule else []
    words += ["--leave-out", config.leave_out] if config.leave_out else []
    return words + (["--leave-out-train", str(config.leave_out_train)] if config.leave_out_train else [])


def _print_sizes(dataset: Dataset, suggestion: Suggestion) -> None:
    splits = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    echo(f"images   {splits}")
    if dataset.sizes:
        by_number = sorted(dataset.sizes.items(), key=lambda item: -item[1])
        echo(f"sizes    {listed([f'{h}x{w} ({number} images)' for (h, w), number in by_number])}")
    height, width = suggestion.image_size
    fit = {"stretch": "", "letterbox": " --fit letterbox (aspect ratios differ)", "crop": " --fit crop"}[suggestion.fit]
    echo(f"flags    --image-size {height} {width}{fit}; --class-weights {suggestion.class_weights}")
    config = dataclasses.replace(Config(), image_size=suggestion.image_size, fit=suggestion.fit)
    if warning := size_warning(config, dataset):
        echo(f"warning: {warning}")


def _audit(dataset: Dataset) -> sequences.Audit | None:
    """Audit neighboring frames across splits; return None if there is one sequence, without neighbors across splits."""
    found = sequences.audit({name: split.names for name, split in dataset.splits.items()})
    return found if found is not None and (len(found.sequences) > 1 or found.neighbors) else None


def _draw(dataset: Dataset, options: DoctorOptions, path: str, title: str = "", most: int = _MAX_PICTURES) -> str:
    """Draw a page of samples, evenly spaced over those that `--pick` selects; return a description of the selection.

    Raises:
      UserError: If `--pick` matches no image, or there is no such page.
    """
    places = _picked(dataset, options.pick)
    num_pages = -(-len(places) // most)
    if not 1 <= options.page <= num_pages:
        raise UserError(f"--page must be between 1 and {num_pages} for {len(places)} images, got {options.page}")
    chosen = places[options.page - 1 :: num_pages]
    samples = [dataset.splits[split].read(index) for split, index in chosen]
    size, _ = suggested_size(Counter(label.shape for _, label in samples))
    images, labels = (
        np.stack(each) for each in zip(*(fit_sample(*each, size, "letterbox") for each in samples), strict=True)
    )
    bars = (fit_sample(image, np.zeros_like(label), size, "letterbox")[1] for image, label in samples)
    inside = np.stack([each != VOID for each in bars])
    page = f", --page {options.page} of {num_pages}" if num_pages > 1 else ""
    title = title or f"{len(chosen)} of {len(places)} images with their labels{page}"
    names = [f"{dataset.splits[split].names[index]} ({split})" for split, index in chosen]
    settings = {"max_images": most, "asked_for": True, "names": names, "inside": inside}
    batch_picture(images, labels, dataset.classes, path, title, **settings)
    return f"{len(chosen)} of {len(places)} images{page}"


def _picked(dataset: Dataset, patterns: Sequence[str]) -> list[tuple[str, int]]:
    """Return the split and index of each image whose name matches a pattern; without patterns, of all images.

    Raises:
      UserError: If no image matches.
    """
    places = [(split, index) for split, samples in dataset.splits.items() for index in range(len(samples))]
    names = [dataset.splits[split].names[index] for split, index in places]
    wanted = [pattern[: -len(suffix)] if (suffix := _image_suffix(pattern)) else pattern for pattern in patterns]
    chosen = [
        place
        for place, name in zip(places, names, strict=True)
        if not wanted or any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
    ]
    if not chosen:
        raise UserError(f"--pick {' '.join(patterns)} matches none of the {len(names)} images: {listed(names)}")
    return chosen


def _image_suffix(name: str) -> str:
    suffix = pathlib.PurePath(name).suffix
    return suffix if suffix.lower() in IMAGE_SUFFIXES else ""


def _draw_choices(options: DoctorOptions, config: Config, choices: Sequence[str]) -> None:
    """Draw one sheet per possible interpretation of the labels, stacked vertically."""
    sheets = []
    with tempfile.TemporaryDirectory() as folder:
        for number, flags in enumerate(choices):
            words = [options.data, *_data_flags(config)[1:], *shlex.split(flags)]
            chosen = parse_flags(DoctorOptions, words, prog="segnet_jax.doctor", description=DESCRIPTION)
            try:
                dataset = open_data(_config_of(chosen))
            except UserError as error:
                echo(f"cannot draw the labels with {flags}: {error.faults[0].what[:200]}")
                continue
            path = os.path.join(folder, f"{number}.png")
            _draw(dataset, options, path, flags, _MAX_PICTURES_PER_READING)
            sheets.append(Image.fromarray(read_image(pathlib.Path(path), path)))
        if sheets:
            atomic_write_bytes(options.picture, sheet_png(sheets, asked_for=True))
            echo(f"wrote {options.picture}: the labels in each possible interpretation")


def _write_classes(options: DoctorOptions, config: Config) -> int:
    """Write a class table of the label values or colors found, for the user to edit."""
    path, reading = pathlib.Path(options.classes), read_options_of(config)
    if os.path.lexists(path):
        raise UserError(f"--classes {path} already exists and is not overwritten; delete it, or choose another file")
    faults: list[Fault] = []
    found = scan(label_files(options.data, reading), reading, faults)
    if not found:
        raise UserErrors(options.data, faults)
    atomic_write_text(path, draft_class_table(found, max(0, config.labels_start_at)))
    echo(f"wrote {path}: edit the class names, then run\n  {_called('doctor')} {shlex.join(_data_flags(config))}")
    return 0


if __name__ == "__main__":
    run_command(main)

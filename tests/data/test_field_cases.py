"""Test folders as users bring them: every class is read correctly, or all interpretations are shown."""

import importlib.util
import io
import json
import os
import pathlib
import shlex
import sys
import unicodedata

import numpy as np
import pytest
from field_folders import BLUE, COLORS, RED, palette_png, read_as, save, scene
from PIL import Image

from segnet_jax import doctor
from segnet_jax.config.flags import parse_flags
from segnet_jax.data.images.decode import read_image
from segnet_jax.data.images.picture_header import largest_image
from segnet_jax.runs.load_dataset import open_data
from segnet_jax.runs.setup import resolve
from segnet_jax.system import memory_budget
from segnet_jax.system.errors import UserError

TRUE = {"ground": "ground", "red": "disc", "blue": "box"}
UNNAMED = {"ground": "class 0", "red": "class 1", "blue": "class 2"}
MASK = {"ground": "class 0", "red": "class 1", "blue": "class 0"}
CASES = os.environ.get("SEGNET_JAX_FIELD_CASES", "")
"""Folder of more such folders, each made by NAME/make.py OUT [VARIANT]."""


def opened(folder, flags=""):
    options = parse_flags(doctor.DoctorOptions, [str(folder), *shlex.split(flags)], prog="p", description="")
    return open_data(doctor._config_of(options))


def refused(folder, flags=""):
    """Return the first fault of each kind for which the folder is rejected."""
    with pytest.raises(UserError) as error:
        opened(folder, flags)
    return {fault.kind: fault for fault in reversed(error.value.faults)}


def fill(folder, label=lambda ids, i: ids, image="images/p{i:02d}.jpg", place="labels/p{i:02d}.png", number=10):
    """Write images and labels; `label` converts true ids and an index into the label to save."""
    for i in range(number):
        picture, ids = scene(i)
        split = "train" if i < 0.8 * number else "val"
        where = {"i": i, "split": split}
        save(picture, folder / image.format(**where), **({"quality": 95} if image.endswith(".jpg") else {}))
        saved = label(ids, i)
        path = folder / place.format(**where)
        if isinstance(saved, Image.Image):
            path.parent.mkdir(parents=True, exist_ok=True)
            saved.save(path)
        else:
            save(saved, path)
    return folder


def mask(ids, i=0):
    return (ids == RED).astype(np.uint8)


# --- fixes: each printed fix, if pasted, reads the true colors as their classes ---


def soft(ids, i):
    big = (
        Image.fromarray(((ids == RED) * 255).astype(np.uint8)).resize((640, 480)).resize((64, 48), Image.Resampling.BOX)
    )
    return np.asarray(big)


def smoothed(ids, i):
    picture = COLORS[ids].copy()
    edge = (ids[:, :-1] != ids[:, 1:]).nonzero()
    mixed = (COLORS[ids][:, :-1].astype(int) + COLORS[ids][:, 1:]) // 2
    steps = np.array([0.3, 0.5, 0.7])[np.arange(len(edge[0])) % 3]
    pair = COLORS[ids].astype(float)
    mixed = pair[:, :-1][edge] * (1 - steps[:, None]) + pair[:, 1:][edge] * steps[:, None]
    picture[edge] = np.rint(mixed).astype(np.uint8)
    return picture


def table(folder, names=("ground", "disc", "box"), colors=COLORS):
    rows = (f"{r} {g} {b} {name}\n" for (r, g, b), name in zip(colors, names, strict=True))
    (folder / "label_colors.txt").write_text("".join(rows))


def rotated(folder):
    """Write photos with an EXIF rotation and upright labels."""
    for i in range(8):
        picture, ids = scene(i)
        exif = Image.Exif()
        exif[0x0112] = 6
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).transpose(Image.Transpose.ROTATE_90).save(
            folder / f"images/{i}.jpg", exif=exif, quality=95
        )
        save(ids, folder / f"labels/{i}.png")


def half_rotated(folder):
    """Write photos with an EXIF rotation; half of the labels are stored in the same orientation as the pixels."""
    rotated(folder)
    for i in range(0, 8, 2):
        _, ids = scene(i)
        save(np.rot90(ids), folder / f"labels/{i}.png")


def codes(folder, *names):
    (folder / "codes.txt").write_text("\n".join(names) + "\n")


FIXES = {
    "masks of 0 and 255": (lambda f: fill(f, lambda ids, i: mask(ids) * np.uint8(255)), "--map 255=1", MASK),
    "masks of 0 and 255 as RGB": (
        lambda f: fill(f, lambda ids, i: np.repeat(mask(ids)[..., None] * np.uint8(255), 3, -1)),
        "--map 255=1",
        MASK,
    ),
    "ids from 1": (lambda f: fill(f, lambda ids, i: ids + np.uint8(1)), "--labels-start-at 1", UNNAMED),
    "ids from 1, named": (
        lambda f: (fill(f, lambda ids, i: ids + np.uint8(1)), codes(f, "ground", "disc", "box")),
        "--labels-start-at 1",
        TRUE,
    ),
    "grey of a palette": (
        lambda f: fill(f, lambda ids, i: np.array([0, 38, 75], np.uint8)[ids]),
        "--map 38=1 --map 75=2",
        UNNAMED,
    ),
    "JPEG masks": (
        lambda f: fill(f, lambda ids, i: mask(ids) * np.uint8(255), place="labels/p{i:02d}.jpg"),
        "--threshold 128",
        MASK,
    ),
    "soft edges": (lambda f: fill(f, soft), "--threshold 128", MASK),
    "smoothed colors": (lambda f: (fill(f, smoothed), table(f)), "--unknown-color ignore", TRUE),
    "half-size labels": (lambda f: fill(f, lambda ids, i: ids[1::2, 1::2]), "--resize-labels nearest", UNNAMED),
    "rotated": (rotated, "--exif apply", UNNAMED),
    "half of the labels rotated": (half_rotated, "--exif by-label", UNNAMED),
    "a slip of the pen": (
        lambda f: (
            fill(
                f, lambda ids, i: np.where((np.arange(ids.size).reshape(ids.shape) < 3) & (i == 4), 9, ids).astype("u1")
            ),
            codes(f, "background", "disc", "box"),
        ),
        "--map 9=255",
        {"ground": "background", "red": "disc", "blue": "box"},
    ),
}


@pytest.mark.parametrize("name", FIXES)
def test_a_printed_fix_reads_the_true_colors_as_their_classes(name, tmp_path):
    make, fix, expected = FIXES[name]
    make(tmp_path)
    faults = refused(tmp_path)
    (fault,) = faults.values()
    assert fault.fix == fix and not fault.choices
    dataset = opened(tmp_path, fix)
    assert read_as(dataset) == expected and not dataset.doubts


# --- ambiguous: both interpretations are shown, and each reads as described if chosen ---


def mixed(folder):
    fill(folder, lambda ids, i: mask(ids) * np.uint8(255 if i % 2 else 1))


def squares(folder, size=48):
    """Write square photos with an EXIF rotation, whose size does not reveal the label's orientation."""
    for i in range(6):
        picture, ids = scene(i, size, size)
        exif = Image.Exif()
        exif[0x0112] = 6
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).transpose(Image.Transpose.ROTATE_90).save(
            folder / f"images/{i}.jpg", exif=exif, quality=95
        )
        save(ids, folder / f"labels/{i}.png")


AMBIGUOUS = {
    "n names for 0..n": (
        lambda f: (fill(f), codes(f, "disc", "box")),
        "label-out-of-range",
        {"--labels-start-at 1": {"ground": "void", "red": "disc", "blue": "box"}, "--map 2=255": None},
    ),
    "0 is unlabeled and the last class absent": (
        lambda f: (fill(f), codes(f, "disc", "box", "bird")),
        "ambiguous-labels",
        {"--labels-start-at 1": {"ground": "void", "red": "disc", "blue": "box"}, "--labels-start-at 0": None},
    ),
    "no 0 although it has a name": (
        lambda f: (fill(f, lambda ids, i: np.maximum(ids, 1)), codes(f, "other", "disc", "box")),
        "ambiguous-labels",
        {"--labels-start-at 0": None, "--labels-start-at 1": None},
    ),
    "some masks of 0 and 1, others of 0 and 255": (mixed, "mixed-masks", {"--map 255=1": MASK, "--map 255=255": None}),
    "three grey levels": (
        lambda f: fill(f, lambda ids, i: np.array([0, 128, 255], np.uint8)[ids]),
        "ambiguous-labels",
        {"--map 128=1 --map 255=2": UNNAMED, "--map 128=1": {"ground": "class 0", "red": "class 1", "blue": "void"}},
    ),
    "255 as void or as the last class": (
        lambda f: (fill(f, lambda ids, i: np.array([0, 1, 255], np.uint8)[ids]), codes(f, "background", "disc", "box")),
        "ambiguous-labels",
        {
            "--map 255=2": {"ground": "background", "red": "disc", "blue": "box"},
            "--map 255=255": {"ground": "background", "red": "disc", "blue": "void"},
        },
    ),
    "masks of 0 and 255 for three names": (
        lambda f: (fill(f, lambda ids, i: mask(ids) * np.uint8(255)), codes(f, "background", "disc", "box")),
        "mask-0-255",
        {"--map 255=1": {"ground": "background", "red": "disc", "blue": "background"}, "--map 255=2": None},
    ),
    "square photographs": (squares, "exif-rotation", {"--exif apply": UNNAMED, "--exif ignore": None}),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_two_interpretations_are_both_shown_and_neither_is_printed_as_the_fix(name, tmp_path):
    make, kind, readings = AMBIGUOUS[name]
    make(tmp_path)
    faults = refused(tmp_path)
    fault = faults[kind]
    assert set(readings) <= set(fault.choices) and not fault.fix.startswith("--")
    for flags in readings:
        assert flags in fault.what or kind == "exif-rotation"
        assert kind == "exif-rotation" or f"{flags}: " in fault.what and " %" in fault.what
    for flags, expected in readings.items():
        if expected is not None:
            assert read_as(opened(tmp_path, flags)) == expected


def test_training_waits_for_a_choice_and_checks_its_result(tmp_path, capsys):
    fill(tmp_path)
    codes(tmp_path, "disc", "box")
    options = parse_flags(doctor.DoctorOptions, [str(tmp_path), "--labels-start-at", "1"], prog="p", description="")
    with pytest.raises(UserError, match=r"9\d\.\d % of all label pixels are void.*add --mostly-void") as error:
        doctor.doctor(options)
    assert error.value.kind == "mostly-void"
    config = doctor._config_of(options)
    with pytest.raises(UserError, match="mostly-void"):
        resolve(config)
    words = [str(tmp_path), "--labels-start-at", "1", "--mostly-void"]
    assert doctor.doctor(parse_flags(doctor.DoctorOptions, words, prog="p", description="")) == 0
    assert "--labels-start-at 1 --mostly-void" in capsys.readouterr().out.splitlines()[-1]


def test_a_flag_that_empties_a_class_is_a_fault(tmp_path):
    fill(tmp_path)
    codes(tmp_path, "background", "disc", "box")
    (doubt,) = opened(tmp_path, "--map 2=1").doubts
    assert doubt.kind == "emptied-class" and "box has pixels without --map, but none with it" in doubt.what


@pytest.mark.slow
def test_a_picture_shows_all_interpretations(tmp_path, monkeypatch, capsys):
    fill(tmp_path / "photos")
    codes(tmp_path / "photos", "disc", "box")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        doctor.doctor(parse_flags(doctor.DoctorOptions, ["photos", "--picture", "look.png"], prog="p", description=""))
    picture = read_image(tmp_path / "look.png", "look.png")
    assert "in each possible interpretation" in capsys.readouterr().out
    assert picture.shape[0] > 2 * 180 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


# --- by file ---


def test_files_that_differ_are_named(tmp_path):
    mixed(tmp_path)
    what = refused(tmp_path)["mixed-masks"].what
    assert "5 files (labels/p01.png" in what and "5 files (labels/p00.png" in what


def test_a_threshold_that_some_files_fall_below_is_a_fault(tmp_path):
    fill(tmp_path, lambda ids, i: mask(ids) * np.uint8(255 if i else 1))
    assert "labels/p00.png" in refused(tmp_path, "--threshold 128")["mixed-masks"].what


def test_each_rotated_file_is_reported_by_its_own_label(tmp_path):
    half_rotated(tmp_path)
    options = parse_flags(doctor.DoctorOptions, [str(tmp_path)], prog="p", description="")
    with pytest.raises(UserError) as error:
        open_data(doctor._config_of(options))
    matches_stored = {fault.file: "matches the stored" in fault.what for fault in error.value.faults}
    assert matches_stored == {f"images/{i}.jpg": i % 2 == 0 for i in range(8)}


# --- colors ---


def shuffled(ids, i):
    picture = Image.new("P", ids.shape[::-1])
    order = [[0, 1, 2], [2, 0, 1], [0, 2, 1]][i % 3]
    picture.putpalette(COLORS[order].reshape(-1).tolist())
    picture.putdata(np.argsort(order)[ids].ravel().tolist())
    return picture


def test_palettes_are_read_by_their_own_colors_where_the_table_has_colors(tmp_path):
    fill(tmp_path, shuffled)
    table(tmp_path)
    assert read_as(opened(tmp_path)) == TRUE


def test_contradictory_palettes_are_a_fault_without_a_table_and_the_fix_works(tmp_path, monkeypatch):
    fill(tmp_path, shuffled)
    fault = refused(tmp_path)["palettes-differ"]
    assert "index" in fault.what and "files" in fault.what and "--classes" in fault.fix
    codes(tmp_path, "ground", "disc", "box")
    assert "palettes-differ" in refused(tmp_path)
    (tmp_path / "codes.txt").unlink()
    assert doctor.doctor(doctor.DoctorOptions(data=str(tmp_path), classes=str(tmp_path / "classes.toml"))) == 0
    assert read_as(opened(tmp_path)) == UNNAMED


def test_palettes_that_contradict_the_table_are_a_fault(tmp_path):
    others = np.array([(9, 9, 9), (0, 0, 200), (200, 0, 0)], np.uint8)
    for i in range(6):
        picture, ids = scene(i)
        save(picture, tmp_path / f"images/{i}.png")
        palette_png(ids, others, tmp_path / f"labels/{i}.png")
    table(tmp_path)
    fault = refused(tmp_path)["ambiguous-labels"]
    assert fault.choices == ("--labels-as values", "--labels-as colors") and "label_colors.txt" in fault.what
    assert read_as(opened(tmp_path, "--labels-as values")) == TRUE


def test_a_color_in_many_files_is_a_class_that_the_table_lacks(tmp_path):
    fill(tmp_path, lambda ids, i: COLORS[ids])
    table(tmp_path, ("ground", "disc"), COLORS[:2])
    fault = refused(tmp_path)["unknown-color"]
    assert "10 files" in fault.what and "add `0 128 0 NAME` in label_colors.txt" in fault.fix
    dataset = opened(tmp_path, "--unknown-color ignore")
    (note,) = [note for note in dataset.notes if "--unknown-color ignore" in note]
    assert "(0, 128, 0) (" in note and "% of the pixels void" in note
    (tmp_path / "label_colors.txt").write_text("0 0 0 ground\n128 0 0 disc\n0 128 0 NAME\n")
    assert read_as(opened(tmp_path)) == TRUE | {"blue": "NAME"}


# --- splits ---

SPLITS = {
    "Train/Images {} Train/Masks": ("Train/Images/{i}.jpg", "Train/Masks/{i}.png", "train"),
    "train2017": ("images/train2017/{i}.jpg", "annotations/train2017/{i}.png", "train"),
    "TRAIN_SET": ("TRAIN_SET/img/{i}.jpg", "TRAIN_SET/mask/{i}.png", "train"),
    "test_images": ("test_images/{i}.jpg", "test_masks/{i}.png", "test"),
    "Testing": ("Testing/image/{i}.jpg", "Testing/label/{i}.png", "test"),
    "val_2012": ("val_2012/images/{i}.jpg", "val_2012/annotations/{i}.png", "val"),
    "ISIC": ("ISIC2018_Task1-2_Validation_Input/I_{i}.jpg", "ISIC2018_Task1_Validation_GroundTruth/I_{i}.png", "val"),
}


@pytest.mark.parametrize("name", SPLITS)
def test_folders_that_look_like_a_split_are_that_split(name, tmp_path):
    image, label, split = SPLITS[name]
    for i in range(8):
        picture, ids = scene(i)
        is_other = i >= 4
        # the other half is for training, or for validation beside a training split
        other = "other_train" if split != "train" else "other_val"
        save(picture, tmp_path / (f"{other}/images/{i}.jpg" if is_other else image.format(i=i)), quality=95)
        save(ids, tmp_path / (f"{other}/labels/{i}.png" if is_other else label.format(i=i)))
    dataset = opened(tmp_path, "--val-fraction 0.5" if split == "test" else "")
    assert len(dataset.splits[split]) == 4 and read_as(dataset) == UNNAMED
    stems = {"I_0", "I_1", "I_2", "I_3"} if name == "ISIC" else set("0123")
    assert {each.rpartition("-")[2] for each in dataset.splits[split].names} == stems
    if split == "test":  # never trained on
        assert not {*dataset.splits["train"].names} & {*dataset.splits["test"].names}


PAIRS = {
    "spaces": "images/{i}.jpg masks/m{i}.png",
    "tabs": "images/{i}.jpg\tmasks/m{i}.png",
    "quotes": '"images/{i}.jpg" "masks/m{i}.png"',
    "commas": "images/{i}.jpg,masks/m{i}.png",
    "foreign prefix": "/home/x/images/{i}.jpg /home/x/masks/m{i}.png",
}


@pytest.mark.parametrize("form", PAIRS)
def test_pair_lists_are_read_as_pairs_in_every_form(form, tmp_path):
    numbers = [3, 0, 2, 1, 5, 4]  # the label of image i is called after another number
    for i in range(6):
        picture, ids = scene(i)
        save(picture, tmp_path / f"images/{i}.jpg", quality=95)
        save(ids, tmp_path / f"masks/m{numbers[i]}.png")
    for split, chosen in (("train", range(4)), ("val", (4, 5))):
        lines = [PAIRS[form].replace("{i}", "{0}", 1).replace("{i}", "{1}").format(i, numbers[i]) for i in chosen]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    dataset = opened(tmp_path)
    assert dataset.splits["train"].names == ("0", "1", "2", "3") and read_as(dataset) == UNNAMED


def test_images_in_folders_of_splits_find_their_labels_in_one_folder(tmp_path):
    fill(tmp_path, image="images/{split}/{i}.jpg", place="masks/{i}.png")
    dataset = opened(tmp_path)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 8, "val": 2}
    assert read_as(dataset) == UNNAMED and not any("without an image" in note for note in dataset.notes)


def test_unlabeled_test_images_are_left_out(tmp_path):
    fill(tmp_path)
    for i in range(3):
        save(scene(50 + i)[0], tmp_path / f"test_images/t{i}.jpg")
    dataset = opened(tmp_path)
    assert read_as(dataset) == UNNAMED and any("test_images has no labels" in note for note in dataset.notes)
    assert not any(name.startswith("t") for split in dataset.splits.values() for name in split.names)


def test_a_list_that_contradicts_the_folders_is_a_fault(tmp_path):
    fill(tmp_path, image="{split}/images/{i}.jpg", place="{split}/labels/{i}.png")
    (tmp_path / "val.txt").write_text("0\n9\n")
    assert "train/images/0.jpg" in refused(tmp_path)["split-contradiction"].what


# --- class files ---

CLASS_FILES = {
    "class_names.txt": "ground\ndisc\nbox\n",
    "classes.txt": "0: ground\n1: disc\n2: box\n",
    "labels.txt": "__ignore__\nground\ndisc\nbox\n",
    "class_dict.csv": "name,r,g,b\nground,0,0,0\ndisc,128,0,0\nbox,0,128,0\n",
    "_classes.csv": "Pixel Value, Class\n0, ground\n1, disc\n2, box\n",
    "obj_class_to_machine_color.json": json.dumps({"disc": [1, 1, 1], "box": [2, 2, 2]}),
    "meta.json": json.dumps({"classes": [{"title": "disc", "color": "#800000"}, {"title": "box", "color": "#008000"}]}),
    "config.json": json.dumps({"labels": [{"readable": n, "color": [9, 9, k]} for k, n in enumerate(TRUE.values())]}),
    "objectInfo150.txt": "Idx\tRatio\tName\n1\t0.1\tdisc, round\n2\t0.1\tbox\n",
}


@pytest.mark.parametrize("name", CLASS_FILES)
def test_a_class_file_goes_before_the_names_of_a_layout(name, tmp_path):
    for i in range(8):
        picture, ids = scene(i)
        save(picture, tmp_path / f"JPEGImages/s_{i}.jpg", quality=95)
        save(ids, tmp_path / f"SegmentationClass/s_{i}.png")
    assert read_as(opened(tmp_path)) == UNNAMED  # the layout is no proof of Pascal VOC's classes
    (tmp_path / name).write_text(CLASS_FILES[name])
    dataset = opened(tmp_path)
    expected = TRUE if "json" not in name or name == "config.json" else TRUE | {"ground": "background"}
    expected = TRUE | {"ground": "void"} if name == "objectInfo150.txt" else expected
    assert read_as(dataset) == expected and f"classes from {name}" in dataset.notes[0]
    (tmp_path / "codes.txt").write_text("background\nb\nc\n")
    notes = opened(tmp_path).notes
    assert "classes from codes.txt" in notes[0] and f"note: classes from codes.txt; not used: {name}" in notes


# --- layouts ---


def bdd(folder):
    fill(folder, image="images/10k/{split}/{i}.jpg", place="labels/sem_seg/masks/{split}/{i}.png")
    fill(folder, lambda ids, i: COLORS[ids], "images/10k/{split}/{i}.jpg", "labels/sem_seg/colormaps/{split}/{i}.png")


def kitti(folder):
    city = np.array([7, 26, 11], np.uint8)
    fill(folder, lambda ids, i: city[ids], "training/image_2/{i:06}_10.png", "training/semantic/{i:06}_10.png")
    fill(folder, lambda ids, i: COLORS[ids], "training/image_2/{i:06}_10.png", "training/semantic_rgb/{i:06}_10.png")


def kaggle(folder):
    fill(folder, lambda ids, i: COLORS[ids], "{split}/s_{i}.png", "{split}_labels/s_{i}_L.png")
    (folder / "class_dict.csv").write_text(CLASS_FILES["class_dict.csv"])


def roboflow(folder):
    fill(folder, image="{split}/r-{i}_jpg.rf.0a{i}.jpg", place="{split}/r-{i}_jpg.rf.0a{i}_mask.png")
    for split in ("train", "val"):
        (folder / split / "_classes.csv").write_text(CLASS_FILES["_classes.csv"])


def supervisely(folder):
    fill(folder, image="ds0/img/{i}.jpg", place="ds0/masks_machine/{i}.png")
    fill(folder, lambda ids, i: COLORS[ids], "ds0/img/{i}.jpg", "ds0/masks_human/{i}.png")
    (folder / "obj_class_to_machine_color.json").write_text(CLASS_FILES["obj_class_to_machine_color.json"])


def mapillary(folder):
    fill(
        folder,
        image="{split}ing/images/{i}.jpg".replace("{split}ing", "training"),
        place="training/v1.2/labels/{i}.png",
    )
    fill(
        folder, lambda ids, i: ids.astype(np.uint16) * 256, "training/images/{i}.jpg", "training/v1.2/instances/{i}.png"
    )


def cityscapes(folder):
    city = np.array([7, 26, 11], np.uint8)
    images = "leftImg8bit_trainvaltest/leftImg8bit/{split}/ulm/ulm_{i:06}_leftImg8bit.png"
    fill(
        folder,
        lambda ids, i: city[ids],
        images,
        "gtFine_trainvaltest/gtFine/{split}/ulm/ulm_{i:06}_gtFine_labelIds.png",
    )


def own_trainids(folder):
    """Write three custom classes under Cityscapes' file names: the layout does not prove the classes."""
    fill(
        folder,
        image="leftImg8bit/{split}/x/x_{i}_leftImg8bit.png",
        place="gtFine/{split}/x/x_{i}_gtFine_labelTrainIds.png",
    )


def pets(folder):
    trimap = np.array([2, 1, 3], np.uint8)
    fill(folder, lambda ids, i: trimap[ids], "images/Cat_{i}.jpg", "annotations/trimaps/Cat_{i}.png")
    lists = {"trainval": range(8), "test": (8, 9)}
    for name, numbers in lists.items():
        rows = "".join(f"Cat_{i} 1 1 1\n" for i in numbers)
        (folder / f"annotations/{name}.txt").write_text(f"#Image CLASS-ID SPECIES BREED ID\n{rows}")


def coco_stuff(folder):
    fill(folder, lambda ids, i: ids, "{split}2017/{i:012}.jpg", "stuffthingmaps/{split}2017/{i:012}.png")
    (folder / "labels.txt").write_text("0: unlabeled\n1: ground\n2: disc\n3: box\n")


def ade20k(folder):
    fill(folder, image="images/training/ADE_{i:08}.jpg", place="annotations/training/ADE_{i:08}.png")
    (folder / "objectInfo150.txt").write_text(CLASS_FILES["objectInfo150.txt"])


LAYOUTS = {
    kaggle: ("", TRUE),
    roboflow: ("", TRUE),
    supervisely: ("", TRUE | {"ground": "background"}),
    bdd: ("", UNNAMED),
    kitti: ("--val-fraction 0.2", {"ground": "road", "red": "car", "blue": "building"}),
    mapillary: ("--val-fraction 0.2", UNNAMED),
    cityscapes: ("", {"ground": "road", "red": "car", "blue": "building"}),
    own_trainids: ("", UNNAMED),
    pets: ("", {"ground": "background", "red": "pet", "blue": "void"}),
    coco_stuff: ("", TRUE),
    ade20k: ("--val-fraction 0.2", TRUE | {"ground": "void"}),
}


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_a_layout_of_another_tool_is_read(make, tmp_path):
    make(tmp_path)
    flags, expected = LAYOUTS[make]
    assert read_as(opened(tmp_path, flags)) == expected


# --- names of files ---

NAMES = {
    "_mask": ("images/car{i}.jpg", "masks/car{i}_mask.png"),
    ".jpg.png": ("images/car{i}.jpg", "masks/car{i}.jpg.png"),
    "gif": ("images/car{i}.jpg", "masks/car{i}_mask.gif"),
    "mask in front": ("images/{i}.jpg", "masks/mask_{i}.png"),
    "sat and mask": ("train/{i}_sat.jpg", "train/{i}_mask.png"),
    "three digits": ("images/image_{i:03}.jpg", "masks/label_{i:03}.png"),
    "beside": ("data/p{i}.jpg", "data/p{i}.png"),
    "endings in capitals": ("images/P{i}.JPG", "masks/P{i}.PNG"),
    "bmp": ("images/p{i}.bmp", "masks/p{i}.bmp"),
    "tiff": ("images/p{i}.tif", "masks/p{i}.tiff"),
}


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_found_by_what_their_names_have_in_common(name, tmp_path):
    image, label = NAMES[name]
    fill(tmp_path, image=image, place=label, number=12)
    dataset = opened(tmp_path, "--val-fraction 0.3")
    assert sum(map(len, dataset.splits.values())) == 12 and read_as(dataset) == UNNAMED


def test_a_suffix_is_stated_where_an_image_has_two_labels(tmp_path):
    fill(tmp_path, place="labels/p{i:02d}_a.png")
    fill(tmp_path, lambda ids, i: (2 - ids).astype(np.uint8), place="labels/p{i:02d}_b.png")
    fault = refused(tmp_path)["two-labels"]
    assert "labels/p00_a.png, labels/p00_b.png" in fault.what and "--label-suffix" in fault.fix
    assert read_as(opened(tmp_path, "--label-suffix _a")) == UNNAMED
    assert read_as(opened(tmp_path, "--label-files '*_a.png'")) == UNNAMED


def test_names_are_compared_composed_and_litter_is_skipped(tmp_path):
    for i in range(6):
        picture, ids = scene(i)
        name = f"Straße {'é' * (i + 1)}"
        save(picture, tmp_path / "images" / (unicodedata.normalize("NFD", name) + ".jpg"), quality=95)
        save(ids, tmp_path / "labels" / (unicodedata.normalize("NFC", name) + ".png"))
    (tmp_path / "val.txt").write_text(unicodedata.normalize("NFC", "Straße é\n"), "utf-8")
    for place in ("images/@eaDir/x.jpg", "labels/__MACOSX/._a.png", "images/._b.jpg", "images/Thumbs.db"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"?")
    dataset = opened(tmp_path)
    assert read_as(dataset) == UNNAMED and dataset.splits["val"].names == ("Straße é",)


def test_links_are_read_where_they_stay_inside_or_are_trusted(tmp_path):
    folder = fill(tmp_path / "photos")
    (folder / "store").mkdir()
    for path in sorted((folder / "images").iterdir())[:3]:
        path.rename(folder / "store" / f"{path.stem}.bin")
        path.symlink_to(f"../store/{path.stem}.bin")
    assert read_as(opened(folder)) == UNNAMED
    (folder / "images/p05.jpg").rename(tmp_path / "p05.bin")
    (folder / "images/p05.jpg").symlink_to(tmp_path / "p05.bin")
    assert "--follow-links" in refused(folder)["points-outside"].fix
    assert read_as(opened(folder, "--follow-links")) == UNNAMED


# --- images ---


def test_sixteen_bits_need_a_stated_range_that_all_images_share(tmp_path):
    for i in range(6):
        picture, ids = scene(i)
        values = picture[..., 0].astype(np.uint16) * (8 if i % 2 else 16)
        save(values, tmp_path / f"images/{i}.png")
        save(ids, tmp_path / f"labels/{i}.png")
    assert "--image-range 0 4095" in refused(tmp_path)["sixteen-bits"].fix
    dataset = opened(tmp_path, "--image-range 0 4095")
    for split in dataset.splits.values():
        for index, name in enumerate(split.names):
            picture, _ = scene(int(name))
            stored = picture[..., 0].astype(float) * (8 if int(name) % 2 else 16)
            expected = np.clip(np.rint(stored * 255 / 4095), 0, 255)
            np.testing.assert_array_equal(split.read(index)[0], np.repeat(expected[..., None], 3, -1))


def test_larger_images_are_read_if_memory_allows():
    file = io.BytesIO()
    Image.new("L", (10_000, 6_000)).save(file, "PNG", compress_level=1)
    with pytest.raises(UserError, match="60 million .* over the limit of 50 million.*--tile 512 512"):
        read_image(file.getvalue(), "large.png")
    assert largest_image() >= 50_000_000
    assert read_image(file.getvalue(), "large.png", max_pixels=70_000_000).shape == (6_000, 10_000, 3)
    with pytest.raises(UserError, match="60 million .*would need 1.9 GB of memory.*cut the image into parts"):
        read_image(file.getvalue(), "large.png", max_pixels=51_000_000)


def test_the_limit_of_large_images_follows_the_memory_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_budget, "_CGROUP", str(tmp_path))
    whole = memory_budget.free_memory()
    for name, text in (("memory.max", "max"), ("memory.current", "5000"), ("memory.stat", "file 9\ninactive_file 100")):
        (tmp_path / name).write_text(text)
    assert abs(memory_budget.free_memory() - whole) < whole / 2 and whole > 0  # no limit
    (tmp_path / "memory.max").write_text("7000\n")
    assert memory_budget.free_memory() == 7000 - 5000 + 100
    assert largest_image() == 50_000_000


# --- refusals say what was found ---


def test_a_refusal_describes_what_was_found(tmp_path):
    for i in range(3):
        save(scene(i)[0], tmp_path / f"site/day1/cam/{i}.jpg")
    (tmp_path / "instances.json").write_text(json.dumps({"images": [], "annotations": []}))
    what = refused(tmp_path)["no-dataset"].what
    assert "3 images in site/day1/cam (3 .jpg)" in what and "empty" not in what
    assert "instances.json is COCO JSON" in what and "Semantic Segmentation Masks" in what


def test_masks_of_one_class_each_are_refused_with_what_to_do(tmp_path):
    for i in range(4):
        picture, ids = scene(i)
        save(picture, tmp_path / f"images/{i}.jpg")
        for name, value in (("disc", RED), ("box", BLUE)):
            path = tmp_path / f"masks/task-{i}-annotation-{i}-by-1-tag-{name}-0.png"
            save(((ids == value) * 255).astype(np.uint8), path)
    assert "box, disc" in refused(tmp_path)["mask-per-class"].what


# --- more folders, where there are any ---


def _made(name, out, *variant):
    place = pathlib.Path(CASES) / name / "make.py"
    spec = importlib.util.spec_from_file_location("make", place)
    before = sys.argv, [*sys.path]
    sys.argv = [str(place), str(out), *variant]
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    finally:
        sys.argv, sys.path[:] = before
    return out


SHARED = [
    ("01-labelme2voc", "", "", TRUE | {"ground": "_background_"}),
    ("02-palette-order", "", "", TRUE),
    ("02-palette-order", "q", "", {"ground": "ground", "red": "disc"}),
    ("06-mixed-01-0255", "", "refused mixed-masks", None),
    ("07-kaggle-camvid", "", "", {"ground": "Road", "red": "Car", "blue": "Bicyclist"}),
    ("08-three-equal-channels", "", "", UNNAMED),
    ("08-three-equal-channels", "named", "", TRUE),
    ("11-jpeg-masks", "", "refused lossy-label", None),
    ("11-jpeg-masks", "", "--threshold 128", MASK),
    *(("13-mask-suffix", suffix, "", MASK) for suffix in ("_mask.png", "_mask.gif", ".jpg.png")),
    ("17-decomposed-names", "", "", UNNAMED),
    ("23-zero-is-unlabelled", "", "refused label-out-of-range", None),
    ("23-zero-is-unlabelled", "absent", "refused ambiguous-labels", None),
    ("26-tool-layouts", "roboflow", "", TRUE | {"ground": "background"}),
    ("26-tool-layouts", "unet", "--map 255=1", MASK),
    ("26-tool-layouts", "supervisely", "", TRUE | {"ground": "background"}),
    ("26-tool-layouts", "camvid-keras", "", UNNAMED),
    ("26-tool-layouts", "bdd", "", UNNAMED),
    ("26-tool-layouts", "kitti", "--val-fraction 0.2", {"ground": "road", "red": "car", "blue": "building"}),
    ("26-tool-layouts", "mapillary", "", UNNAMED),
    ("26-tool-layouts", "cityscapes-zips", "", {"ground": "road", "red": "car", "blue": "building"}),
    ("32-predict-labels-of-mapped-run", "", "--map 255=1", MASK),
]


@pytest.mark.skipif(not CASES, reason="SEGNET_JAX_FIELD_CASES names no folder of field cases")
@pytest.mark.parametrize("case", SHARED, ids=lambda case: "-".join(filter(None, case[:3])).replace(" ", ""))
def test_a_shared_field_case_is_read_right_or_refused(case, tmp_path):
    name, variant, flags, expected = case
    folder = _made(name, tmp_path / "x", *([variant] if variant else []))
    if expected is None:
        assert flags.split()[1] in refused(folder)
    elif variant == "q":  # in some of its masks the box is no class
        dataset = opened(folder)
        assert {*dataset.classes.names} == {"ground", "disc", "box"}
    else:
        assert read_as(opened(folder, flags)) == expected

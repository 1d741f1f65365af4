"""Test masks of one class each: every naming scheme is read as one label, or refused with all readings."""

import json

import numpy as np
import pytest
from field_folders import BLUE, GROUND, RED, read_as, save, scene
from PIL import Image
from test_field_cases import opened, refused

from segnet_jax import doctor
from segnet_jax.config.flags import parse_flags
from segnet_jax.constants import VOID
from segnet_jax.data.label_files.class_masks import read_class_masks
from segnet_jax.data.labels.label_mapping import LabelRule, StoredLabels, labels_from_json
from segnet_jax.data.labels.read_options import DEFAULTS
from segnet_jax.data.layouts.label_studio import masks_for_names, region_of
from segnet_jax.inference.labels import rule_of
from segnet_jax.runs.load_dataset import open_data
from segnet_jax.system.errors import UserError

CLASSES = {"disc": RED, "box": BLUE}
TRUE = {"ground": "background", "red": "disc", "blue": "box"}


def fill(folder, mask, image="images/{i:04}.png", classes=CLASSES, number=6, area=lambda ids, value: ids == value):
    """Write images, and for each of them a mask of 0 and 255 per class; absent classes have none."""
    for i in range(number):
        picture, ids = scene(i)
        save(picture, folder / image.format(i=i, split="val" if i == 0 else "train"))
        for name, value in classes.items():
            inside = area(ids, value)
            if inside.any():
                path = folder / mask.format(i=i, name=name, split="val" if i == 0 else "train")
                save((inside * 255).astype(np.uint8), path)
    return folder


def labels_of(dataset):
    return {name: split.read(i)[1] for split in dataset.splits.values() for i, name in enumerate(split.names)}


SCHEMES = {
    "folders of classes": ("images/{i:04}.png", "masks/{name}/{i:04}.png"),
    "folders of classes, with a suffix": ("images/{i:04}.png", "masks/{name}/{i:04}_mask.png"),
    "folders called mask and class": ("images/{i:04}.png", "masks_{name}/{i:04}.png"),
    "splits outside": ("{split}/images/{i:04}.png", "{split}/masks/{name}/{i:04}.png"),
    "splits inside": ("images/{split}/{i:04}.png", "masks/{split}/{name}/{i:04}.png"),
    "suffixes": ("images/{i:04}.png", "masks/{i:04}_{name}.png"),
    "suffixes of words": ("images/p {i}.jpg", "masks/p {i} mask-{name}.png"),
    "prefixes": ("images/{i:04}.png", "labels/{name}_{i:04}.png"),
    "beside": ("photos2/{i:04}.jpg", "photos2/{i:04}_{name}.png"),
    "folders of images": ("images/{i:04}.png", "masks/{i:04}/{name}.png"),
    "a folder for each image": ("{i:04}/images/{i:04}.png", "{i:04}/masks/{name}.png"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_masks_of_each_naming_scheme_are_merged(scheme, tmp_path):
    image, mask = SCHEMES[scheme]
    fill(tmp_path, mask, image)
    dataset = opened(tmp_path, "" if "split" in mask else "--val-fraction 0.3")
    assert dataset.classes.names == ("background", "box", "disc") and read_as(dataset) == TRUE
    assert sum(map(len, dataset.splits.values())) == 6
    if "split" in mask:
        assert len(dataset.splits["val"]) == 1
    order = np.array([0, 2, 1])  # ground, disc, box
    found = labels_of(dataset)
    for number, name in enumerate(sorted(found)):
        np.testing.assert_array_equal(found[name], order[scene(number)[1]])


def test_a_palette_tells_what_is_outside(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png")
    for path in (tmp_path / "masks").rglob("*.png"):
        inside = np.asarray(Image.open(path)) > 0
        picture = Image.fromarray(np.where(inside, 0, 1).astype(np.uint8), "P")
        picture.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white and inside, index 1 black
        picture.save(path)
    assert read_as(opened(tmp_path, "--val-fraction 0.3")) == TRUE


def test_a_class_absent_from_an_image_needs_no_mask_but_an_image_without_any_mask_is_a_fault(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png")
    (tmp_path / "masks/box/0002.png").unlink()
    label = labels_of(opened(tmp_path))["0002"]
    np.testing.assert_array_equal(label == 2, scene(2)[1] == RED)
    assert not (label == 1).any()
    (tmp_path / "masks/disc/0002.png").unlink()
    assert "has no mask of any class (box, disc)" in refused(tmp_path)["image-without-label"].what


def test_a_split_with_masks_of_one_class_alone_is_read_like_the_others(tmp_path):
    fill(tmp_path, "{split}/masks/{name}/{i:04}.png", "{split}/images/{i:04}.png")
    (tmp_path / "val/masks/box/0000.png").unlink()
    dataset = opened(tmp_path)
    np.testing.assert_array_equal(dataset.splits["val"].read(0)[1] == 2, scene(0)[1] == RED)


@pytest.mark.parametrize("scheme", ["folders of classes", "splits outside", "splits inside"])
def test_a_folder_of_masks_called_train_beside_other_classes_is_a_class(scheme, tmp_path):
    image, mask = SCHEMES[scheme]
    fill(tmp_path, mask, image, {"bus": BLUE, "car": GROUND, "train": RED})
    dataset = opened(tmp_path)
    assert dataset.classes.names == ("bus", "car", "train")
    assert read_as(dataset) == {"ground": "car", "red": "train", "blue": "bus"}


def test_a_folder_without_any_pair_is_a_fault(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png", classes={"train": RED, "val": BLUE})
    assert "no pair of image and label was found in" in refused(tmp_path)["no-pairs"].what
    with pytest.raises(UserError, match="no pair of image and label was found in"):
        doctor.doctor(parse_flags(doctor.DoctorOptions, [str(tmp_path)], prog="p", description=""))


# --- Label Studio ---

REGION = "export/task-{task}-annotation-{number}-by-{user}-tag-{name}-{region}.png"


def studio(folder, user="1", number=6):
    """Write masks as Label Studio names them, the disc in two regions; task 10 + i is image i."""
    for i in range(number):
        picture, ids = scene(i)
        save(picture, folder / f"images/street {i}.jpg", quality=95)
        left = (ids == RED) & (np.arange(ids.shape[1]) < 20)
        for name, region, area in (("Disc", 0, left), ("Disc", 1, (ids == RED) & ~left), ("A-box", 0, ids == BLUE)):
            path = REGION.format(task=10 + i, number=30 + i, user=user, name=name, region=region)
            save((area * 255).astype(np.uint8), folder / path)
    return folder


IMAGE_OF_A_TASK = {
    "an upload": lambda i: {"id": 10 + i, "data": {"image": f"/data/upload/3/0a1b2c3d-street%20{i}.jpg"}},
    "a local file": lambda i: {"id": 10 + i, "data": {"photo": f"/data/local-files/?d=day\\street%20{i}.jpg"}},
    "a bucket": lambda i: {"id": 10 + i, "data": {"image": f"s3://b/street {i}.jpg?sig=a.png", "text": "street 1"}},
    "JSON_MIN": lambda i: {"id": 10 + i, "image": f"https://example.org/street%20{i}.jpg", "annotator": 1},
}


@pytest.mark.parametrize("form", IMAGE_OF_A_TASK)
@pytest.mark.parametrize("user", ["1", "ann.lee@street-views.example.org", ""])
def test_label_studios_masks_are_matched_by_its_json_export(form, user, tmp_path):
    studio(tmp_path, user)
    (tmp_path / "project-1.json").write_text(json.dumps([IMAGE_OF_A_TASK[form](i) for i in range(6)]))
    dataset = opened(tmp_path)
    assert dataset.classes.names == ("background", "A-box", "Disc")
    assert read_as(dataset) == {"ground": "background", "red": "Disc", "blue": "A-box"}
    label = labels_of(dataset)["images-street 3"]
    np.testing.assert_array_equal(label, np.array([0, 2, 1])[scene(3)[1]])


def test_label_studios_masks_are_matched_by_images_named_after_tasks(tmp_path):
    studio(tmp_path)
    with pytest.raises(UserError, match=r"18 masks from Label Studio \(A-box, Disc\) are named after tasks"):
        opened(tmp_path)
    assert "JSON export" in refused(tmp_path)["mask-per-class"].fix
    for i in range(6):
        (tmp_path / f"images/street {i}.jpg").rename(tmp_path / f"export/task-{10 + i}.jpg")
    assert read_as(opened(tmp_path)) == {"ground": "background", "red": "Disc", "blue": "A-box"}


def test_several_annotations_of_a_task_are_a_fault_until_one_is_chosen(tmp_path):
    studio(tmp_path)
    (tmp_path / "tasks.json").write_text(json.dumps([IMAGE_OF_A_TASK["an upload"](i) for i in range(6)]))
    save(np.full((48, 64), 255, np.uint8), tmp_path / REGION.format(task=12, number=99, user=2, name="Disc", region=0))
    fault = refused(tmp_path)["two-labels"]
    assert "street 2.jpg has masks of 2 annotations" in fault.what and "--label-files" in fault.fix
    assert read_as(opened(tmp_path, "--label-files '*-by-1-*'"))["red"] == "Disc"


def test_names_of_label_studio_are_taken_apart(tmp_path):
    for name, expected in (
        ("task-1-annotation-2-by-1-tag-Car-0.png", ("1", "2", "Car")),
        ("task-1-annotation-2-by-a.b@c-d.de-tag-Traffic-light-12.png", ("1", "2", "Traffic-light")),
        ("task-7-annotation-8-by-3-brush-Car-0.png", ("7", "8", "Car")),
    ):
        assert region_of(tmp_path / name) == expected
    assert region_of(tmp_path / "task-1.png") is None and region_of(tmp_path / "mask-1-tag-a-0.png") is None


# --- overlaps ---


def wide(ids, value):
    """Return the area of a class; the box also covers the lower right quarter, and the disc the right half."""
    rows, columns = np.indices(ids.shape)
    return (ids == value) | (columns >= 32) & ((value == RED) | (rows >= 24))


def test_overlapping_masks_are_a_fault_with_their_pixels_and_both_orders(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png", area=wide)
    pixels = sum(int((wide(scene(i)[1], RED) & wide(scene(i)[1], BLUE)).sum()) for i in range(6))
    fault = refused(tmp_path)["overlapping-masks"]
    assert f"the masks of box and disc overlap in {pixels} pixels of 6 files (masks/box/0000.png" in fault.what
    assert fault.choices == ("--mask-order box disc", "--mask-order disc box")
    assert all(f"{flags}: " in fault.what and " %" in fault.what for flags in fault.choices)
    assert not fault.fix.startswith("--")
    for flags, top in zip(fault.choices, (RED, BLUE), strict=True):
        dataset = opened(tmp_path, f"{flags} --unmasked background")
        for name, label in labels_of(dataset).items():
            areas = {value: wide(scene(int(name))[1], value) for value in (RED, BLUE)}
            expected = np.where(areas[RED], 2, np.where(areas[BLUE], 1, 0))
            if top == BLUE:
                expected = np.where(areas[BLUE], 1, np.where(areas[RED], 2, 0))
            np.testing.assert_array_equal(label, expected)
    assert (
        opened(tmp_path, "--mask-order box disc").splits["train"].fingerprint
        != opened(tmp_path, "--mask-order disc box").splits["train"].fingerprint
    )


def test_an_order_names_the_classes_of_masks(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png", area=wide)
    assert "no masks of it; nearest: disc" in refused(tmp_path, "--mask-order box dics")["unknown-mask"].what
    assert "overlapping-masks" in refused(tmp_path, "--mask-order disc")


def test_three_overlapping_classes_need_an_order_of_all(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png", classes=CLASSES | {"area": GROUND}, area=lambda ids, value: ids >= 0)
    fault = refused(tmp_path)["overlapping-masks"]
    assert not fault.choices and "an order of area, box, disc" in fault.fix
    dataset = opened(tmp_path, "--mask-order area box disc")
    assert all((label == 2).all() for label in labels_of(dataset).values())  # the disc, on top


# --- pixels in no mask ---


def gaps(ids, value):
    """Return areas that leave a column between them."""
    columns = np.indices(ids.shape)[1]
    return columns < 32 if value == RED else columns > 32


def test_few_pixels_in_no_mask_may_be_background_or_void(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png", area=gaps)
    fault = refused(tmp_path)["ambiguous-labels"]
    assert fault.choices == ("--unmasked background", "--unmasked void")
    assert "288 pixels (1.6 %) are in no mask" in fault.what
    for text in ("--unmasked background: box 48.4 %, disc 50.0 %, background 1.6 %", "disc 50.0 %, void 1.6 %"):
        assert text in fault.what
    background, void = (opened(tmp_path, flags) for flags in fault.choices)
    assert background.classes.names == ("background", "box", "disc") and void.classes.names == ("box", "disc")
    for label in labels_of(background).values():
        np.testing.assert_array_equal(label[5], np.repeat([2, 0, 1], [32, 1, 31]))
    for label in labels_of(void).values():
        np.testing.assert_array_equal(label[5], np.repeat([1, VOID, 0], [32, 1, 31]))


def test_pixels_in_no_mask_beside_masks_of_the_background(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png", classes={"background": GROUND, "disc": RED})
    fault = refused(tmp_path)["ambiguous-labels"]
    assert "there are masks of background" in fault.what
    as_background = opened(tmp_path, "--unmasked background")
    assert read_as(as_background) == {"ground": "background", "red": "disc", "blue": "background"}
    assert read_as(opened(tmp_path, "--unmasked void")) == TRUE | {"blue": "void"}


def test_masks_of_void_leave_the_rest_to_the_background(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png", classes={"ignore": BLUE, "disc": RED})
    assert read_as(opened(tmp_path)) == {"ground": "background", "red": "disc", "blue": "void"}


def test_masks_that_cover_everything_need_no_background(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png", classes=CLASSES | {"ground": GROUND})
    dataset = opened(tmp_path)
    assert dataset.classes.names == ("box", "disc", "ground")
    assert read_as(dataset) == {"ground": "ground", "red": "disc", "blue": "box"}


def test_mostly_void_is_doubted(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png")
    (doubt,) = opened(tmp_path, "--unmasked void").doubts
    assert doubt.kind == "mostly-void" and not opened(tmp_path, "--unmasked void --mostly-void").doubts


# --- class files ---


def test_a_class_file_sets_order_names_and_background(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png", classes={"red disc": RED, "Box": BLUE})
    (tmp_path / "classes.txt").write_text("Red_Disc\nbox\nbird\nother\n")
    dataset = opened(tmp_path)
    assert dataset.classes.names == ("Red_Disc", "box", "bird", "other")
    assert read_as(dataset) == {"ground": "other", "red": "Red_Disc", "blue": "box"}
    (tmp_path / "classes.txt").write_text("Red_Disc\nbox\n")
    fault = refused(tmp_path)["ambiguous-labels"]
    assert fault.choices == ("--unmasked void",) and "add `background` to classes.txt" in fault.fix
    assert read_as(opened(tmp_path, "--unmasked void"))["ground"] == "void"
    (tmp_path / "classes.txt").write_text("other\nRed_Disc\nBoxes\n")
    assert "masks of Box, which is not in classes.txt; nearest: Boxes" in refused(tmp_path)["unknown-mask"].what


def test_names_that_differ_by_case_only_are_a_fault(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png", classes={"disc": RED, "box": BLUE})
    fill(tmp_path, "masks/{name}/{i:04}.png", classes={"Disc": RED}, number=2)
    fault = refused(tmp_path)
    assert "Disc" in fault["unknown-mask"].what and "spelling" in fault["unknown-mask"].what


def test_names_that_cannot_be_printed_are_a_fault(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png", classes={"di\u202esc": RED, "box": BLUE})
    assert "called di\\u202esc, which is not a name" in refused(tmp_path)["unknown-mask"].what


# --- refused ---


def test_masks_of_single_objects_are_refused_with_what_to_do(tmp_path):
    sums = ["07a9bf1d7594af2763c86e93f05d22c4", "0e548d0af63ab451616f082eb56bde13"]
    fill(
        tmp_path / "dsb",
        "stage1_train/n{i}/masks/{name}.png",
        "stage1_train/n{i}/images/n{i}.png",
        dict(zip(sums, (1, 2), strict=True)),
    )
    fault = refused(tmp_path / "dsb")["instance-masks"]
    assert "single objects" in fault.what and "merge the masks of each image into one PNG" in fault.fix
    fill(tmp_path / "n", "masks/{i:04}_cell_{name}.png", classes={"1": 1, "2": 2})
    assert "cell_1, cell_2" in refused(tmp_path / "n")["instance-masks"].what


def test_masks_with_several_values_are_refused_or_thresholded(tmp_path):
    fill(tmp_path / "soft", "masks/{name}/{i:04}.png")
    for path in (tmp_path / "soft/masks").glob("*/*.png"):
        values = np.array(Image.open(path))
        rows, columns = np.nonzero(values)
        values[rows[0], columns[0]] = 100
        save(values, path)
    fault = refused(tmp_path / "soft")["soft-edges"]
    assert fault.fix == "--threshold 128" and read_as(opened(tmp_path / "soft", fault.fix)) == TRUE
    fill(tmp_path / "jpeg", "masks/{name}/{i:04}.jpg")
    fault = refused(tmp_path / "jpeg")["lossy-label"]
    assert fault.fix == "--threshold 128" and read_as(opened(tmp_path / "jpeg", fault.fix)) == TRUE
    fill(tmp_path / "ids", "masks/{name}/{i:04}.png")
    save((scene(5)[1] * 3).astype(np.uint8), tmp_path / "ids/masks/disc/0005.png")
    fault = refused(tmp_path / "ids")["mask-values"]
    assert "masks/disc/0005.png contains 3 values (0, 3, 6)" in fault.what and not fault.fix.startswith("--")


def test_flags_of_class_ids_are_refused_with_masks_and_those_of_masks_without(tmp_path):
    fill(tmp_path / "masks", "masks/{name}/{i:04}.png")
    assert "--map is for labels of all classes" in refused(tmp_path / "masks", "--map 255=1")["mask-per-class"].what
    for i in range(4):
        picture, ids = scene(i)
        save(picture, tmp_path / f"ids/images/{i}.png")
        save(ids, tmp_path / f"ids/labels/{i}.png")
    assert "are for masks of one class each" in refused(tmp_path / "ids", "--unmasked void")["mask-per-class"].what


def test_masks_of_one_image_have_one_size(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png")
    save(np.zeros((24, 32), np.uint8), tmp_path / "masks/disc/0001.png")
    assert "mask masks/disc/0001.png is 32x24" in refused(tmp_path)["label-size-differs"].what


# --- stored with the run ---


def test_the_rule_is_stored_and_read_back_and_older_rules_are_kept(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png", area=wide)
    dataset = opened(tmp_path, "--mask-order disc box --unmasked void --mostly-void")
    stored = StoredLabels(dataset.classes, dataset.label_rule)
    text = json.loads(json.dumps(stored.as_json()))
    assert labels_from_json(text) == stored
    again = open_data(_config(tmp_path), stored)
    for name, label in labels_of(again).items():
        np.testing.assert_array_equal(label, labels_of(dataset)[name])
    for change in ({"masks": [["disc", 9]]}, {"masks": [[1, 1]]}, {"unmasked": 7}, {"mask_order": "disc"}):
        with pytest.raises(ValueError):
            labels_from_json(text | {"rule": text["rule"] | change})
    for i in range(4):
        picture, ids = scene(i)
        save(picture, tmp_path / f"ids/images/{i}.png")
        save(ids, tmp_path / f"ids/labels/{i}.png")
    plain = opened(tmp_path / "ids")
    rule = StoredLabels(plain.classes, plain.label_rule).as_json()["rule"]
    assert not {"masks", "mask_order", "unmasked"} & rule.keys()  # as older versions read it
    with pytest.raises(UserError, match="the run reads masks of one class each"):
        open_data(_config(tmp_path / "ids"), stored).splits["train"].read(0)


def _config(folder):
    return doctor._config_of(parse_flags(doctor.DoctorOptions, [str(folder)], prog="p", description=""))


def test_a_mask_of_a_class_that_the_run_does_not_have_is_an_error(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png")
    rule = opened(tmp_path).label_rule
    with pytest.raises(UserError, match="is a mask of bird, which is not a class: box, disc"):
        read_class_masks(rule, [("bird", tmp_path / "masks/box/0001.png")])


def test_the_doctors_command_repeats_the_flags_of_masks(tmp_path, capsys):
    fill(tmp_path, "masks/{name}/{i:04}.png", area=wide)
    words = [str(tmp_path), "--mask-order", "box", "disc", "--unmasked", "background"]
    assert doctor.doctor(parse_flags(doctor.DoctorOptions, words, prog="p", description="")) == 0
    out = capsys.readouterr().out
    assert "--mask-order box disc --unmasked background" in out.splitlines()[-1]
    assert "masks of one class each: box, disc" in out
    with pytest.raises(UserError, match="named after their classes, so it needs no --classes"):
        doctor.doctor(doctor.DoctorOptions(data=str(tmp_path), classes=str(tmp_path / "classes.toml")))


def test_labels_of_predictions_are_found_for_few_images_and_refused_with_a_mask_of_another_class(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png")
    names = [f"{i:04}" for i in range(6)] + [f"other{i}" for i in range(20)]
    found = masks_for_names(names, tmp_path / "masks", ["box", "disc"])
    assert sorted(found) == names[:6] and [name for name, _ in found["0000"].masks] == ["box", "disc"]
    (tmp_path / "masks/disc").rename(tmp_path / "masks/bike")
    with pytest.raises(UserError, match="is a mask of bike, not a class of the network"):
        masks_for_names(names, tmp_path / "masks", ["box", "disc"])


def test_a_value_for_void_is_refused_with_masks(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png")
    dataset = opened(tmp_path)
    stored = StoredLabels(dataset.classes, dataset.label_rule)
    with pytest.raises(UserError, match="--void 7 cannot be used with masks of one class each"):
        rule_of(stored, dataset.classes, DEFAULTS, 7)


def test_the_suggested_order_quotes_names_with_spaces(tmp_path):
    full = np.full((4, 4), 255, np.uint8)
    masks = [(name, tmp_path / f"{name}.png") for name in ("box", "red disc")]
    for _, path in masks:
        save(full, path)
    rule = LabelRule(2, (), masks=(("box", 0), ("red disc", 1)))
    with pytest.raises(UserError, match="such as --mask-order box 'red disc'"):
        read_class_masks(rule, masks)

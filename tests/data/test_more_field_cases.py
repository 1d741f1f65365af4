"""Test folders after public bug reports: class files, splits and pairs in the forms in which tools write them."""

import json

import numpy as np
import pytest
from field_folders import COLORS, RED, palette_png, read_as, save, scene
from test_field_cases import MASK, TRUE, UNNAMED, codes, fill, mask, opened, refused, table

from segnet_jax.data.label_files.class_table_files import read_class_table
from segnet_jax.data.layouts.names.match_labels import pictures_below
from segnet_jax.system.errors import UserError

# --- class files ---

FORMS = {
    "id after the name": ("classes.txt", "box 2\ndisc 1\nground 0\n"),
    "id after a colon": ("classes.txt", "box: 2\ndisc: 1\nground: 0\n"),
    "id after a tab": ("labels.txt", "box\t2\ndisc\t1\nground\t0\n"),
    "numbered": ("classes.txt", "0. ground\n1. disc\n2. box\n"),
    "numbered with dashes": ("classes.txt", "2 - box\n1 - disc\n0 - ground\n"),
    "header": ("classes.txt", "class\nground\ndisc\nbox\n"),
    "header of ids": ("labels.txt", "id name\n0 ground\n1 disc\n2 box\n"),
    "comments": ("codes.txt", "# my classes\nground # the rest\ndisc\nbox\n"),
    "one line": ("classes.txt", "ground, disc, box\n"),
    "brackets": ("classes.txt", "['ground', 'disc',\n 'box']"),
    "trailing commas": ("classes.txt", '"ground",\n"disc",\n"box",\n'),
    "numbers called label": ("classes.csv", "label,name\n2,box\n0,ground\n1,disc\n"),
    "numbers called code": ("classes.csv", "code,class\n2,box\n0,ground\n1,disc\n"),
    "list": ("classes.json", '["ground", "disc", "box"]'),
    "ids of names": ("dataset.json", '{"labels": {"box": 2, "disc": 1, "ground": 0}}'),
    "names of ids": ("id2label.json", '{"2": "box", "1": "disc", "0": "ground"}'),
}


@pytest.mark.parametrize("form", FORMS)
def test_class_files_are_read_in_every_form(form, tmp_path):
    name, text = FORMS[form]
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / name).write_text(text, encoding)
        mapping = read_class_table(tmp_path / name)
        assert {value: mapping.classes.names[i] for value, i in mapping.ids if value < 3} == {
            0: "ground",
            1: "disc",
            2: "box",
        }


@pytest.mark.parametrize(
    "names",
    [("zone 1", "zone 2", "zone 3"), ("class 0", "class 1"), ("background", "zone 1", "zone 2"), ("class", "label")],
)
def test_names_that_end_in_a_number_or_are_words_of_headers_stay_names(names, tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(names))
    assert read_class_table(tmp_path / "classes.txt").classes.names == names


COLOR_FORMS = {
    "hexadecimal": ("classes.txt", "box #008000\nground #000000\ndisc #800000\n"),
    "hexadecimal in front": ("classes.txt", "#008000 box\n#000000 ground\n#800000 disc\n"),
    "header": ("labels.txt", "name r g b\nbox 0 128 0\nground 0 0 0\ndisc 128 0 0\n"),
    "no header": ("class_dict.csv", "box,0,128,0\nground,0,0,0\ndisc,128,0,0\n"),
    "tuples": ("class_dict.csv", 'name,color\nbox,"(0, 128, 0)"\nground,"(0, 0, 0)"\ndisc,"(128, 0, 0)"\n'),
    "spaces": ("class_dict_seg.csv", "name, r, g, b\nbox, 0, 128, 0\nground, 0, 0, 0\ndisc, 128, 0, 0\n"),
    "JSON": (
        "classes.json",
        '{"classes": [{"title": "box", "color": "#008000"}, {"title": "disc", "color": "#800000"}]}',
    ),
}


@pytest.mark.parametrize("form", COLOR_FORMS)
def test_colors_of_class_files_are_read_in_every_form(form, tmp_path):
    name, text = COLOR_FORMS[form]
    (tmp_path / name).write_text(text)
    mapping = read_class_table(tmp_path / name)
    named = {mapping.classes.names[i]: color for color, i in mapping.colors}
    assert named == {
        name: color
        for name, color in {"box": (0, 128, 0), "disc": (128, 0, 0), "ground": (0, 0, 0)}.items()
        if name in named
    }
    assert {"box", "disc"} <= set(named)


def test_a_csv_of_images_is_no_class_file(tmp_path):
    fill(tmp_path)
    (tmp_path / "labels.csv").write_text("image,label\n" + "".join(f"p{i:02d}.jpg,kind {i}\n" for i in range(10)))
    assert read_as(opened(tmp_path)) == UNNAMED


def test_class_files_that_list_the_classes_in_two_orders_are_a_fault_with_both_readings(tmp_path):
    fill(tmp_path)
    codes(tmp_path, "ground", "disc", "box")
    (tmp_path / "classes.txt").write_text("box\ndisc\nground\n")
    what = refused(tmp_path)["ambiguous-labels"].what
    assert "codes.txt: ground 9" in what and "classes.txt: box 9" in what
    (tmp_path / "classes.txt").write_text("ground\ndisc\nbox\n")
    assert read_as(opened(tmp_path)) == TRUE


# --- splits ---


def lists(folder, chosen, write):
    for split, numbers in chosen.items():
        write(folder, split, numbers)


CHOSEN = {"train": (1, 2, 3, 6, 8, 9), "val": (0, 5, 7)}
IN_LISTS = {
    "table of pairs": lambda f, s, n: (f / f"{s}.csv").write_text(
        "image,mask\n" + "".join(f"images/p{i:02d}.jpg,labels/p{i:02d}.png\n" for i in n)
    ),
    "table with an index": lambda f, s, n: (f / f"{s}.csv").write_text(
        ",file,width\n" + "".join(f"{k},p{i:02d}.jpg,64\n" for k, i in enumerate(n))
    ),
    "UTF-16": lambda f, s, n: (f / f"{s}.txt").write_text("".join(f"p{i:02d}.jpg\r\n" for i in n), "utf-16"),
    "capitals": lambda f, s, n: (f / f"{s}.TXT").write_text("".join(f"P{i:02d}.JPG\n" for i in n)),
    "names of labels": lambda f, s, n: (f / f"{s}.txt").write_text("".join(f"labels/p{i:02d}.png\n" for i in n)),
    "paths from a subfolder": lambda f, s, n: (
        (f / "splits").mkdir(exist_ok=True),
        (f / f"splits/{s}.txt").write_text("".join(f"../images/p{i:02d}.jpg\n" for i in n)),
    ),
    "another folder": lambda f, s, n: (
        (f / "meta").mkdir(exist_ok=True),
        (f / f"meta/{s}.txt").write_text("".join(f"p{i:02d}\n" for i in n)),
    ),
}


@pytest.mark.parametrize("form", IN_LISTS)
def test_lists_are_read_in_every_form(form, tmp_path):
    fill(tmp_path)
    for split, numbers in CHOSEN.items():
        IN_LISTS[form](tmp_path, split, numbers)
    dataset = opened(tmp_path)
    assert {s: set(each.names) for s, each in dataset.splits.items()} == {
        s: {f"p{i:02d}" for i in n} for s, n in CHOSEN.items()
    }
    assert read_as(dataset) == UNNAMED


def test_a_split_in_a_table_in_json_or_in_the_names_is_the_split(tmp_path):
    rows = [f"{i},{split},images/p{i:02d}.jpg\n" for split, numbers in CHOSEN.items() for i in numbers]
    names = {split: [f"p{i:02d}.jpg" for i in numbers] for split, numbers in CHOSEN.items()}
    for file, text in (("meta.csv", "id,split,path\n" + "".join(rows)), ("split.json", json.dumps(names))):
        fill(tmp_path / file)
        (tmp_path / file / file).write_text(text)
        dataset = opened(tmp_path / file)
        assert dataset.splits["val"].names == ("p00", "p05", "p07")
        assert any(note.startswith(f"note: split by {file}") for note in dataset.notes)
    folder = fill(tmp_path / "names", image="images/{split}_{i}.jpg", place="labels/{split}_{i}.png")
    for i in range(3):
        picture, ids = scene(50 + i)
        save(picture, folder / f"images/test_{i}.jpg", quality=95)
        save(ids, folder / f"labels/test_{i}.png")
    found = {name: len(split) for name, split in opened(folder).splits.items()}
    assert found == {"train": 8, "val": 2, "test": 3}


def test_nnu_nets_test_images_are_not_trained_on(tmp_path):
    fill(tmp_path, image="imagesTr/a_{i:03}_0000.png", place="labelsTr/a_{i:03}.png")
    for i in range(3):
        picture, ids = scene(50 + i)
        save(picture, tmp_path / f"imagesTs/a_{50 + i:03}_0000.png")
        save(ids, tmp_path / f"labelsTs/a_{50 + i:03}.png")
    dataset = opened(tmp_path)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 10, "test": 3}
    assert read_as(dataset) == UNNAMED


def test_lists_of_pascal_voc_may_be_in_imagesets(tmp_path):
    fill(tmp_path, image="JPEGImages/{i}.jpg", place="SegmentationClass/{i}.png")
    (tmp_path / "ImageSets").mkdir()
    for split, numbers in (("trn", range(6)), ("val", (6, 7)), ("tst", (8, 9))):
        (tmp_path / f"ImageSets/{split}.txt").write_text("".join(f"{i}\n" for i in numbers))
    dataset = opened(tmp_path)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 6, "val": 2, "test": 2}


# --- pairs ---

PLACES = {
    "IDD": ("leftImg8bit/train/0/{i}_leftImg8bit.png", "gtFine/train/0/{i}_gtFine_labellevel3Ids.png"),
    "beside, _m": ("output/{i}.jpg", "output/{i}_m.png"),
    "semantic in the folder's name": ("semantic_set/original_images/{i}.jpg", "semantic_set/label_images/{i}.png"),
    "labelme, older": ("JPEGImages/{i}.jpg", "SegmentationClassPNG/{i}.png"),
}


@pytest.mark.parametrize("name", PLACES)
def test_labels_are_found_by_the_scheme_of_their_names(name, tmp_path):
    image, label = PLACES[name]
    fill(tmp_path, image=image, place=label)
    fill(
        tmp_path, lambda ids, i: COLORS[ids], image, label.replace(".png", "_color.png").replace("labellevel3Ids_", "")
    )
    if name == "labelme, older":
        (tmp_path / "SegmentationClass").mkdir()
    assert read_as(opened(tmp_path, "--val-fraction 0.2")) == UNNAMED


def test_what_labelme_json_to_dataset_writes_is_read(tmp_path):
    fill(tmp_path, image="p{i}_json/img.png", place="p{i}_json/label.png")
    fill(tmp_path, lambda ids, i: COLORS[ids], "p{i}_json/img.png", "p{i}_json/label_viz.png")
    for i in range(10):
        (tmp_path / f"p{i}_json/label_names.txt").write_text("ground\ndisc\nbox\n")
    assert read_as(opened(tmp_path)) == TRUE
    (tmp_path / "p3_json/label_names.txt").write_text("ground\nbox\ndisc\n")
    assert "p3_json/label_names.txt differs" in refused(tmp_path)["bad-class-table"].what


def test_two_labels_of_an_image_show_a_flag_for_each(tmp_path):
    fill(tmp_path, place="masks/p{i:02d}.png")
    fill(tmp_path, lambda ids, i: (2 - ids).astype(np.uint8), place="masks_old/p{i:02d}.png")
    choices = refused(tmp_path)["two-labels"].choices
    assert choices == ("--label-files '*masks/*'", "--label-files '*masks_old/*'")
    assert read_as(opened(tmp_path, choices[0])) == UNNAMED


def test_masks_of_the_field_of_view_are_not_taken_for_labels(tmp_path):
    """DRIVE's layout: `mask/` matches the images' names, but the labels are in `1st_manual/`."""
    fill(tmp_path, lambda ids, i: mask(ids), "training/images/{i}_training.tif", "training/1st_manual/{i}_manual1.gif")
    fill(
        tmp_path,
        lambda ids, i: np.ones_like(ids) * np.uint8(i % 2),
        "training/images/{i}_training.tif",
        "training/mask/{i}_training_mask.gif",
    )
    choices = refused(tmp_path)["two-labels"].choices
    assert read_as(opened(tmp_path, f"{choices[1]} --val-fraction 0.2")) == MASK


def test_both_versions_of_mapillary_vistas_are_read_by_their_own_class_file(tmp_path):
    order, files = [2, 0, 1], {"v2.0": ["ground", "disc", "box"], "v1.2": ["disc", "box", "ground"]}
    image = "training/images/{i}.jpg"
    fill(tmp_path, image=image, place="training/v2.0/labels/{i}.png")
    fill(tmp_path, lambda ids, i: np.array(order, np.uint8)[ids], image, "training/v1.2/labels/{i}.png")
    for version, names in files.items():
        content = {"labels": [{"readable": name, "color": [place, 9, 9]} for place, name in enumerate(names)]}
        (tmp_path / f"config_{version}.json").write_text(json.dumps(content))
    assert read_as(opened(tmp_path, "--val-fraction 0.2")) == TRUE
    assert read_as(opened(tmp_path, "--val-fraction 0.2 --label-files '*v1.2/labels/*'")) == TRUE


def test_links_to_folders_are_followed_or_reported(tmp_path):
    fill(tmp_path / "store", image="photos/{i}.jpg", place="gt/{i}.png")
    folder = tmp_path / "data"
    folder.mkdir()
    for name, target in (("images", "photos"), ("masks", "gt")):
        (folder / name).symlink_to(f"../store/{target}")
    (folder / "images/loop").symlink_to("..")
    assert "--follow-links" in refused(folder)["points-outside"].fix
    assert read_as(opened(folder, "--follow-links")) == UNNAMED


# --- values and colors ---


def values(*new):
    return lambda ids, i: np.array(new, np.uint8)[ids]


READINGS = {
    "255 is background or void": (
        values(255, 1, 2),
        ("ground", "disc", "box"),
        "ambiguous-labels",
        "--map 255=0",
        TRUE,
    ),
    "no 0, and 255": (
        values(255, 1, 2),
        (),
        "ambiguous-labels",
        "--map 255=0",
        UNNAMED,
    ),
    "even steps, named": (
        values(0, 100, 200),
        ("ground", "disc", "box"),
        "label-out-of-range",
        "--map 100=1 --map 200=2",
        TRUE,
    ),
    "255 for the last class in some files": (
        lambda ids, i: np.where((ids == 2) & (i % 2 == 0), 255, ids).astype(np.uint8),
        (),
        "mixed-masks",
        "--map 255=2",
        UNNAMED,
    ),
    "the last class absent": (
        values(1, 2, 3),
        ("ground", "disc", "box", "bird"),
        "ambiguous-labels",
        "--labels-start-at 1",
        TRUE,
    ),
}


@pytest.mark.parametrize("name", READINGS)
def test_readings_are_shown_and_the_right_one_chosen_reads_the_true_classes(name, tmp_path):
    label, names, kind, flags, expected = READINGS[name]
    fill(tmp_path, label)
    if names:
        codes(tmp_path, *names)
    fault = refused(tmp_path)[kind]
    assert flags in fault.choices and len(fault.choices) > 1 and not fault.fix.startswith("--")
    dataset = opened(tmp_path, flags)
    assert read_as(dataset) == expected and not dataset.doubts


def test_files_that_count_from_0_and_files_that_count_from_1_are_a_fault(tmp_path):
    fill(tmp_path, lambda ids, i: ids + np.uint8(i % 2))
    fault = refused(tmp_path)["mixed-masks"]
    assert "5 files (labels/p00.png" in fault.what and "5 files (labels/p01.png" in fault.what
    assert len(opened(tmp_path, "--labels-start-at 0").classes) == 4


def test_masks_of_16_bits_are_read_as_classes_by_a_printed_flag(tmp_path):
    fill(tmp_path, lambda ids, i: (ids == RED) * np.uint16(65535))
    fault = refused(tmp_path)["sparse-values"]
    assert fault.fix == "--map 65535=1" and read_as(opened(tmp_path, fault.fix)) == MASK


def test_mostly_void_labels_without_a_class_file_show_the_other_reading(tmp_path):
    fill(tmp_path, values(255, 0, 1))
    (doubt,) = opened(tmp_path).doubts
    assert doubt.choices == ("--map 255=2", "--mostly-void") and "--map 255=2: class 2 9" in doubt.what
    dataset = opened(tmp_path, "--map 255=2")
    assert read_as(dataset) == {"ground": "class 2", "red": "class 0", "blue": "class 1"} and not dataset.doubts


def edges(ids, value):
    found = ids.copy()
    found[:, 1:][ids[:, 1:] != ids[:, :-1]] = value
    return found


def test_the_border_of_pascal_voc_is_void_beside_a_table_of_colors(tmp_path):
    palette = np.zeros((256, 3), np.uint8)
    palette[:3], palette[255] = COLORS, (224, 224, 192)
    for i in range(8):
        picture, ids = scene(i)
        save(picture, tmp_path / f"images/{i}.jpg", quality=95)
        palette_png(edges(ids, 255), palette, tmp_path / f"labels/{i}.png")
    table(tmp_path)
    dataset = opened(tmp_path)
    assert read_as(dataset) == TRUE and any("(224, 224, 192), is read as void" in note for note in dataset.notes)


def test_a_line_of_another_color_is_a_class_or_an_edge(tmp_path):
    colors = np.array([*COLORS, (255, 255, 255)], np.uint8)
    fill(tmp_path, lambda ids, i: colors[edges(ids, 3)])
    table(tmp_path)
    fault = refused(tmp_path)["unknown-color"]
    assert "it is a class (add `255 255 255 NAME`" in fault.what and fault.choices == ("--unknown-color ignore",)
    assert read_as(opened(tmp_path, *fault.choices)) == TRUE


def test_black_that_the_class_file_lacks_is_a_class_or_void(tmp_path):
    fill(tmp_path, lambda ids, i: COLORS[ids])
    table(tmp_path, ("disc", "box"), COLORS[1:])
    fault = refused(tmp_path)["unknown-color"]
    assert fault.choices == ("--unknown-color ignore",) and "add `0 0 0 NAME`" in fault.fix
    table(tmp_path, ("NAME", "disc", "box"))
    assert read_as(opened(tmp_path)) == TRUE | {"ground": "NAME"}


def test_colors_changed_by_jpeg_or_in_another_channel_order_are_named(tmp_path):
    fill(tmp_path / "a", lambda ids, i: COLORS[ids] + np.uint8(i % 4))
    table(tmp_path / "a")
    assert "as JPEG changes colors" in refused(tmp_path / "a")["unknown-color"].fix
    fill(tmp_path / "b", lambda ids, i: COLORS[ids][..., ::-1])
    table(tmp_path / "b")
    assert "as blue, green, red" in refused(tmp_path / "b")["unknown-color"].fix


# --- what a review found ---


def numbered(folder, number=10):
    for i in range(number):
        picture, ids = scene(i)
        save(picture, folder / f"images/{i}.jpg")
        save(ids, folder / f"masks/{i}.png")
    (folder / "classes.txt").write_text("ground\ndisc\nbox\n")
    return folder


def test_a_table_names_images_in_one_column_and_leaves_none_out_in_silence(tmp_path):
    splits = ["val" if i > 6 else "train" for i in range(10)]
    for file in ("row,file,split\n", "row,key,split\n"):
        folder = numbered(tmp_path / file[4:7])
        suffix = ".jpg" if "file" in file else ""
        rows = [f"{9 - i},{i}{suffix},{split}\n" for i, split in enumerate(splits)]
        (folder / "meta.csv").write_text(file + "".join(rows))
    assert opened(tmp_path / "fil").splits["val"].names == ("7", "8", "9")
    with pytest.raises(UserError, match="two columns of meta.csv name images and give different splits"):
        opened(tmp_path / "key")
    folder = numbered(tmp_path / "part")
    (folder / "notes.csv").write_text("file,set\n0.jpg,train\n1.jpg,train\n2.jpg,val\n")
    with pytest.raises(UserError, match="notes.csv gives a split to 3 of 10 images only"):
        opened(folder)


def test_links_to_folders_that_hold_links_are_entered_once(tmp_path):
    for i in range(30):  # entered again for each way to it, the last would be searched 2^30 times
        (tmp_path / f"d{i}").mkdir()
        if i < 29:
            for name in "ab":
                (tmp_path / f"d{i}" / name).symlink_to(f"../d{i + 1}")
    save(scene(0)[0], tmp_path / "d29/x.png")
    faults = []
    assert len(pictures_below(tmp_path, tmp_path, faults)) <= 2 and not faults


def test_a_folder_of_masks_called_like_a_split_is_an_error_that_says_something(tmp_path):
    for i in range(3):
        picture, ids = scene(i)
        save(picture, tmp_path / f"images/{i:03}.png")
        for value, name in enumerate(("bus", "car", "train")):
            save((ids == value).astype(np.uint8) * 255, tmp_path / f"masks/{name}/{i:03}.png")
    try:
        names = opened(tmp_path).classes.names
    except UserError as error:
        assert error.faults and str(error).strip()
    else:
        assert "train" in names

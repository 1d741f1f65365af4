"""Test the predict command: every input at its own size, nothing overwritten, faulty inputs reported at the end."""

import errno
import io
import json
import os
import shutil
import signal
import sys

import hostile_files
import jax
import numpy as np
import pytest
from made_runs import make_run
from PIL import Image, ImageOps

import segnet_jax
from segnet_jax import predict as command
from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_flags
from segnet_jax.constants import VOID
from segnet_jax.data.images.decode import read_image
from segnet_jax.data.images.fit import fit_sample
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.inference import outputs, prediction_pipeline
from segnet_jax.inference.predictor import Predictor, Sizing
from segnet_jax.reporting import prediction_files
from segnet_jax.reporting.class_key import add_class_key
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import UserError
from segnet_jax.training.restore_network import restore

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
TRAINED = (24, 32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Create a working directory with a folder `photos` of three images of different sizes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number, size in enumerate([(24, 32), (37, 50), (16, 70)]):
        Image.fromarray(noise(number, *size)).save(tmp_path / f"photos/{number}.png")
    return tmp_path


def noise(seed, height, width):
    """Return an image with coarse and fine structure."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(coarse) + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def predict(*flags):
    return command.predict(
        command.parse_flags(command.PredictOptions, [str(flag) for flag in flags], prog="p", description="")
    )


def left(monkeypatch, capsys, *flags):
    """Run the command; return its exit code and error lines."""
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, flags)])
    with pytest.raises(SystemExit) as ended:
        run_command(command.main)
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return ended.value.code, [line for line in printed.splitlines() if line.startswith("error: ")]


def logits_by_hand(run, image, size=TRAINED, inside=None):
    """Return logits of the unfolded network at the image's size, resized with Pillow and back with numpy.

    Args:
      run: run folder.
      image: uint8 [H,W,3].
      size: size to resize the image to.
      inside: height and width of the black canvas to center the image on, if any.
    """
    restored = restore(str(run), files.read_run(run), "best", choose_devices("1"), "float32")
    seen = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    top, left = ((whole - part) // 2 for whole, part in zip(inside or size, size, strict=True))
    picture = np.zeros((*(inside or size), 3), np.uint8)
    picture[top : top + size[0], left : left + size[1]] = seen
    apply = jax.jit(lambda variables, x: restored.model.apply(variables, x, train=False))
    found = np.asarray(apply(restored.variables, ((picture[None] - MEAN) / STD).astype(np.float32)))[0]
    found = found[top : top + size[0], left : left + size[1]].astype(np.float64)
    for axis, length in enumerate(image.shape[:2]):
        places = (np.arange(length) + 0.5) * size[axis] / length - 0.5
        between = lambda values, places=places: np.interp(places, np.arange(len(values)), values)  # noqa: E731
        found = np.apply_along_axis(between, axis, found)
    return found


def test_each_prediction_has_its_image_s_size_and_is_that_of_the_unfolded_network(run, here):
    assert predict(run, "photos", "--out", "out", "--confidence", "--json", "summary.json") == 0
    summary = json.loads((here / "summary.json").read_text())
    assert summary["num_inputs"] == summary["num_done"] == 3 and summary["step"] == 7 and summary["faults"] == []
    totals = np.zeros(11)
    for number, row in enumerate(summary["inputs"]):
        image = np.asarray(Image.open(f"photos/{number}.png"))
        logits = logits_by_hand(run, image)
        found = Image.open(f"out/{number}.png")
        assert found.mode == "P" and np.array(found.getpalette()[:33]).reshape(11, 3).tolist() == list(
            map(list, CAMVID.colors)
        )
        ids = np.asarray(found)
        two = np.sort(logits, axis=-1)[..., -2:]
        clear = two[..., 1] - two[..., 0] > 1e-4 * np.abs(logits).max()
        assert clear.mean() > 0.99 and (ids == logits.argmax(axis=-1))[clear].all()
        sure = np.exp(two[..., 1]) / np.exp(logits).sum(axis=-1)
        confidence = np.asarray(Image.open(f"out/{number}_confidence.png"))
        assert np.abs(confidence / 255 - sure).max() < 0.0025
        assert (row["height"], row["width"]) == image.shape[:2] and row["input"] == f"photos/{number}.png"
        assert [os.path.basename(path) for path in row["outputs"]] == [
            f"{number}{end}" for end in (".png", "_overlay.jpg", "_confidence.png")
        ]
        counts = np.array([(ids == class_id).sum() for class_id in range(11)])
        np.testing.assert_allclose([row["class_fractions"][name] for name in CAMVID.names], counts / ids.size)
        assert abs(row["mean_confidence"] - sure.mean()) < 0.002 and row["milliseconds"] > 0
        totals += counts
    np.testing.assert_allclose([summary["class_fractions"][name] for name in CAMVID.names], totals / totals.sum())


def test_overlays_show_image_and_class_above_a_key_and_can_do_without_it(run, here):
    for flags, out in (([], "with"), (["--no-key"], "without")):
        assert predict(run, "photos", "--out", out, *flags) == 0
    for number in range(3):
        image = np.asarray(Image.open(f"photos/{number}.png"))
        ids = np.asarray(Image.open(f"with/{number}.png"))
        expected = 0.4 * image + 0.6 * np.array(CAMVID.colors)[ids]
        bare, keyed = (np.asarray(Image.open(f"{out}/{number}_overlay.jpg"), float) for out in ("without", "with"))
        assert bare.shape == image.shape and keyed.shape[0] > image.shape[0] and keyed.shape[1] == 320
        assert np.abs(bare - expected).mean() < 8  # JPEG of noise
        assert np.abs(keyed[: image.shape[0], : image.shape[1]] - expected).mean() < 8


def test_the_key_names_the_classes_that_are_there_and_no_others():
    shares = np.zeros(11)
    shares[[0, 3]] = 0.25, 0.75
    keyed = add_class_key(np.zeros((30, 400, 3), np.uint8), shares, CAMVID)
    colors = {tuple(color) for color in keyed[38:].reshape(-1, 3)}
    assert colors & set(CAMVID.colors) - {(128, 128, 128)} == {CAMVID.colors[3]} and CAMVID.colors[0] in colors


def folder_of_101(folder):
    folder.mkdir()
    sizes = [(24, 32), (30, 41), (50, 33)]
    for number in range(101):
        Image.fromarray(noise(number, *sizes[number % 3])).save(folder / f"{number:03}.png")
    data = (folder / "050.png").read_bytes()
    (folder / "050.png").write_bytes(data[: len(data) // 2])
    return {f"{number:03}": sizes[number % 3] for number in range(101) if number != 50}


def test_every_format_that_datasets_may_have_is_predicted_alike(run, here):
    (here / "mixed").mkdir()
    image = Image.fromarray(noise(0, 24, 32)).quantize(256)  # GIF stores a palette
    for suffix in ("png", "bmp", "tif", "tiff", "gif", "webp"):
        image.convert("RGB").save(
            here / "mixed" / f"{suffix}.{suffix}", **({"lossless": True} if suffix == "webp" else {})
        )
    assert predict(run, "mixed", "--out", "out") == 0
    ids = {path.stem: np.asarray(Image.open(path)) for path in here.glob("out/*.png")}
    assert len(ids) == 6
    for suffix in ("bmp", "tif", "tiff", "webp"):
        np.testing.assert_array_equal(ids[suffix], ids["png"])
    assert ids["gif"].shape == ids["png"].shape


def test_a_broken_file_among_101_is_named_and_the_others_are_done(run, here, monkeypatch, capsys):
    expected = folder_of_101(here / "frames")
    code, errors = left(monkeypatch, capsys, run, "frames", "--out", "out", "--json", "summary.json")
    assert code == 2 and len(errors) == 1
    assert "1 fault in 1 of 101 inputs: frames/050.png is cut off" in errors[0] and errors[0].endswith("[cut-off]")
    found = {path.stem: Image.open(path).size[::-1] for path in here.glob("out/*.png")}
    assert found == expected
    assert {path.name for path in here.glob("out/*.jpg")} == {f"{name}_overlay.jpg" for name in expected}
    summary = json.loads((here / "summary.json").read_text())
    assert (summary["num_done"], [fault["file"] for fault in summary["faults"]]) == (100, ["frames/050.png"])
    assert [row["input"] for row in summary["inputs"]] == [f"frames/{name}.png" for name in expected]


def test_predictions_do_not_depend_on_batch_and_devices_and_compile_once(run, here, capsys):
    for number in range(3, 7):
        Image.fromarray(noise(number, 20 + number, 30)).save(f"photos/{number}.png")
    for devices, batch in ((1, 4), (3, 2), (8, 1)):
        out = f"{devices}x{batch}"
        assert predict(run, "photos", "--out", out, "--devices", devices, "--batch-size-per-device", batch) == 0
        assert capsys.readouterr().err.count("compiled the network") == 1
        for number in range(7):
            first, other = (np.asarray(Image.open(f"{each}/{number}.png")) for each in ("1x4", out))
            assert (first == other).mean() > 0.999


@pytest.mark.parametrize(
    ("fit", "size", "seen"),
    [
        ("stretch", "trained", (24, 32)),
        ("letterbox", "trained", (24, 32)),
        ("letterbox", "native", (100, 50)),
        ("letterbox", (40, 48), (40, 48)),
        ("crop", "trained", (64, 32)),
        ("crop", "native", (100, 50)),
        ("stretch", (40, 48), (40, 48)),
    ],
)
def test_the_network_sees_an_image_as_in_training_or_as_requested(fit, size, seen):
    sizing = Sizing(size, (24, 32), fit, 2, None, 0)
    assert sizing.input_size((100, 50)) == seen
    assert (
        fit != "letterbox"
        or sizing.place((100, 50))
        == {  # 24 / 100 of 50 columns are 12, with ten on either side
            (24, 32): (slice(0, 24), slice(10, 22)),
            (100, 50): (slice(0, 100), slice(0, 50)),
            (40, 48): (slice(0, 40), slice(0, 48)),
        }[seen]
    )


SHAPES = {  # height and width of pictures -> of what becomes of them within 24x32, by hand
    **{(24, 32): (24, 32), (24, 20): (24, 20), (9, 32): (9, 32), (24, 7): (24, 7)},
    **{(100, 50): (24, 12), (37, 50): (24, 32), (16, 70): (7, 32)},
}


@pytest.mark.slow
def test_between_bars_the_network_sees_what_it_saw_in_training_and_finds_what_evaluation_finds(tmp_path, capsys):
    run, photos = make_run(tmp_path / "run", fit="letterbox"), tmp_path / "photos"
    photos.mkdir()
    images = {f"{height}x{width}": noise(height, height, width) for height, width in SHAPES}
    for name, image in images.items():
        Image.fromarray(image).save(photos / f"{name}.png")
    assert predict(run, photos, "--out", tmp_path / "out", "--devices", 1) == 0
    assert capsys.readouterr().err.count("compiled the network") == 1

    network = segnet_jax.load(run)
    predictor = Predictor(network, choose_devices("1"), 1, Sizing.of(network.config, "trained", (0, 0), 64))
    for (name, image), scaled in zip(images.items(), SHAPES.values(), strict=True):
        found = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        label = np.zeros(image.shape[:2], np.uint8)
        trained_on, inside = fit_sample(image, label, TRAINED, "letterbox")
        np.testing.assert_array_equal(predictor.prepare(image).input, trained_on)
        logits = logits_by_hand(run, image, scaled, TRAINED)
        two = np.sort(logits, axis=-1)[..., -2:]
        clear = two[..., 1] - two[..., 0] > 1e-4 * np.abs(logits).max()
        assert found.shape == image.shape[:2] and clear.mean() > 0.99
        np.testing.assert_array_equal(found[clear], logits.argmax(axis=-1)[clear])
        if scaled == image.shape[:2]:  # nothing is scaled back: pixel by pixel what is scored
            evaluated = network.predict(trained_on, size="native")[inside != VOID].reshape(scaled)
            assert (found == evaluated)[clear].all()


def test_native_size_and_tiles_leave_the_pixels_alone(run, here):
    assert predict(run, "photos/1.png", "--out", "native", "--size", "native", "--precision", "float32") == 0
    assert predict(run, "photos/1.png", "--out", "tiles", "--tile", 36, 36, "--overlap", 24) == 0
    image = np.asarray(Image.open("photos/1.png"))
    by_hand = logits_by_hand(run, image, image.shape[:2]).argmax(axis=-1)
    for out in ("native", "tiles"):
        assert (np.asarray(Image.open(f"{out}/1.png")) == by_hand).mean() > 0.999


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(noise(0, 16, 24)).save(path, exif=exif, quality=95)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(read_image(path, "a.jpg", exif="apply"), expected)


def test_a_turned_photo_gets_an_upright_prediction(run, here):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(0, 16, 24)).save("a.jpg", exif=exif)
    assert predict(run, "a.jpg", "--out", "out", "--no-key") == 0
    assert Image.open("out/a.png").size == Image.open("out/a_overlay.jpg").size == (16, 24)


# names


def test_inputs_of_one_name_get_outputs_of_their_own(run, here, capsys):
    os.mkdir("more")
    names = ["photos/0.png", "more/0.png", "more/0.jpg", "more/0_overlay.jpg", "more/0-2.jpg"]
    for number, name in enumerate(names):
        Image.fromarray(noise(number, 20 + number, 30)).save(name)
    assert predict(run, "photos/0.png", "more", "--out", "out", "--json", "summary.json") == 0
    summary = json.loads((here / "summary.json").read_text())["inputs"]
    assert len({path for row in summary for path in row["outputs"]}) == 10
    for row in summary:
        (index, _) = row["outputs"]
        assert Image.open(index).size == Image.open(row["input"]).size
    assert "outputs are numbered" in capsys.readouterr().err


def test_the_default_folder_is_a_new_one_in_the_run(run, here):
    for number in (1, 2):
        assert predict(run, "photos/0.png") == 0
        assert (run / f"predictions-{number}/0.png").is_file()


def test_nothing_is_overwritten(run, here, monkeypatch, capsys):
    (here / "out").mkdir()
    (here / "out/2_overlay.jpg").write_bytes(b"mine")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    for out in ("out", "photos"):  # an earlier output, and the inputs themselves
        code, errors = left(monkeypatch, capsys, run, "photos", "--out", out)
        assert code == 2 and "existing files are not overwritten" in errors[0] and f"{out}/" in errors[0]
        assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


# labels


def test_scores_against_labels_are_those_of_a_count_by_hand(run, here, capsys):
    os.mkdir("labels")
    matrix = np.zeros((12, 11), int)
    for number, suffix in enumerate(["", "_L", "_P"]):
        size = Image.open(f"photos/{number}.png").size[::-1]
        Image.fromarray(np.random.default_rng(number).integers(0, 12, size).astype(np.uint8)).save(
            f"labels/{number}{suffix}.png"
        )
    assert predict(run, "photos", "--out", "out", "--labels", "labels", "--json", "summary.json") == 0
    for number, suffix in enumerate(["", "_L", "_P"]):
        label, found = (np.asarray(Image.open(path)) for path in (f"labels/{number}{suffix}.png", f"out/{number}.png"))
        photo = Image.open(f"photos/{number}.png")
        size = photo.size[::-1]
        small = photo.resize(TRAINED[::-1], Image.Resampling.BILINEAR)
        ids = logits_by_hand(run, np.asarray(small)).argmax(
            axis=-1
        )  # at the size of the training, as `evaluate` scores
        centers = ([(2 * i + 1) * has // (2 * n) for i in range(n)] for has, n in zip(size, TRAINED, strict=True))
        known_there = label[np.ix_(*centers)]
        for known, given in zip(known_there.ravel(), ids.ravel(), strict=True):
            matrix[known, given] += 1 if known != 11 else 0
        errors = np.asarray(Image.open(f"out/{number}_errors.png"))
        for known, given, color in zip(label.ravel(), found.ravel(), errors.reshape(-1, 3), strict=True):
            assert (known == 11) == (color[0] == color[1] == 150)
            assert (known == given) == (color.tolist() == [236, 236, 236])
    summary = json.loads((here / "summary.json").read_text())
    matrix = matrix[:11]
    assert summary["confusion"] == matrix.tolist() and summary["num_scored"] == 3
    ious = [matrix[i, i] / (matrix[i].sum() + matrix[:, i].sum() - matrix[i, i]) for i in range(11)]
    assert abs(summary["miou"] - np.mean(ious)) < 1e-9
    assert f"{100 * np.mean(ious):.2f}" in capsys.readouterr().out


def test_a_label_at_fault_or_missing_leaves_the_prediction(run, here, monkeypatch, capsys):
    os.mkdir("labels")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save("labels/0.png")
    Image.fromarray(np.full((37, 50), 40, np.uint8)).save("labels/1.png")
    code, errors = left(monkeypatch, capsys, run, "photos", "--out", "out", "--labels", "labels")
    assert code == 2 and [line.split()[-1] for line in errors] == ["[label-size-differs]", "[label-out-of-range]"]
    assert all((here / f"out/{number}.png").is_file() for number in range(3))
    code, errors = left(monkeypatch, capsys, run, "photos/2.png", "--out", "out2", "--labels", "labels")
    assert code == 2 and "1 of 1 images have no label in labels" in errors[0] and not (here / "out2").exists()


# mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["RUN"], "nothing to predict"),
        (["no/run", "photos"], "no run no/run: there is no such folder"),
        (["RUN", "photo"], "no file or folder photo. Did you mean photos?"),
        (["RUN", "empty"], "no image (.png .jpg .jpeg .gif .webp .tif .tiff .bmp) in empty"),
        (["RUN", "."], "it contains the folders empty, photos"),
        (["RUN", "notes.txt"], "notes.txt has no file name extension of an image"),
        (["RUN", "photos", "photos/1.png"], "the same input is given twice: photos/1.png"),
        (["RUN", "photos", "--tile", "1", "1"], "--tile must be at least 4 4"),
        (["RUN", "photos", "--tile", "40", "40", "--overlap", "40"], "--overlap must be between 0 and 38"),
        (["RUN", "photos", "--tile", "40", "40", "--size", "8", "8"], "remove --size"),
        (["RUN", "photos", "--size", "0", "8"], "--size must be between 1"),
        (["RUN", "photos", "--void", "256"], "--void must be between 0 and 255, got 256"),
        (["RUN", "photos", "--devices", "9"], "9 devices requested, but only 8 found"),
        (["RUN", "photos", "--labels", "nowhere"], "no folder nowhere for --labels"),
        (["RUN", "photos", "--out", "notes.txt/out"], "cannot create the folder notes.txt/out"),
        (["RUN", "photos", "--json", "no/summary.json"], "--json no/summary.json: there is no folder"),
        (["RUN", "photos", "--json", "notes.txt"], "--json notes.txt already exists and is not overwritten"),
        (["RUN", "photos", "--outt", "x"], "nearest: --out"),
    ],
    ids=str,
)
def test_a_mistake_is_reported_in_one_line_and_nothing_is_written(run, here, flags, message, monkeypatch, capsys):
    (here / "empty").mkdir()
    if flags == ["RUN", "."]:
        pass
    else:
        (here / "notes.txt").write_text("x")
    before = sorted([*here.rglob("*"), *run.rglob("*")])
    code, errors = left(monkeypatch, capsys, *(run if flag == "RUN" else flag for flag in flags))
    assert code == 2 and len(errors) == 1 and message in errors[0]
    assert sorted([*here.rglob("*"), *run.rglob("*")]) == before


def test_files_in_a_folder_that_are_not_images_are_reported(run, here, capsys):
    for name in ("a.heic", "b.heic", "notes.txt", ".hidden.png"):
        (here / "photos" / name).write_bytes(b"x")
    assert predict(run, "photos", "--out", "out") == 0
    assert "note: ignored in photos: 2 .heic, 1 .txt" in capsys.readouterr().err


def test_hostile_images_are_refused_one_by_one_and_the_valid_one_is_processed(run, here, monkeypatch, capsys):
    (here / "hostile").mkdir()
    made = hostile_files.CASES["pictures"][1](here / "hostile", here / "canary")
    for number, content in enumerate(made.values()):
        if content is not None:
            (here / f"hostile/{number:03}.png").write_bytes(content)
    num_hostile = len(os.listdir("hostile"))
    shutil.copy("photos/1.png", "hostile/valid.png")
    code, errors = left(monkeypatch, capsys, run, "hostile", "--out", "out", "--json", "summary.json")
    summary = json.loads((here / "summary.json").read_text())
    assert code == 2 and summary["num_done"] == 1 and summary["num_inputs"] == num_hostile + 1 > 10
    assert all(line.isprintable() for line in errors)
    assert {path.name for path in here.glob("out/*")} == {"valid.png", "valid_overlay.jpg"}
    assert not (here / "canary").exists()


# stopping


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_whole_files_and_says_how_far_it_came(run, here, number, code, monkeypatch, capfd):
    expected = folder_of_101(here / "frames")
    paths = []

    def read_and_signal(path, *args, **settings):
        paths.append(path)
        if len(paths) == 20:
            os.kill(os.getpid(), number)
        return read_image(path, *args, **settings)

    monkeypatch.setattr(prediction_pipeline, "read_image", read_and_signal)
    monkeypatch.setattr(
        sys, "argv", ["predict", str(run), "frames", "--out", "out", "--devices", "1", "--json", "summary.json"]
    )
    with pytest.raises(SystemExit) as ended:
        run_command(command.main)
    printed = capfd.readouterr().err
    assert ended.value.code == code and "stopping: finishing the files in progress" in printed
    summary = json.loads((here / "summary.json").read_text())
    assert f"stopped after {summary['num_done']} of 101 inputs" in printed and 0 < summary["num_done"] < 100
    for path in here.glob("out/*"):
        Image.open(path).load()
        assert path.suffix in (".png", ".jpg")
    indices = {path.stem: Image.open(path).size[::-1] for path in here.glob("out/*.png")}
    assert len(indices) == summary["num_done"] and indices.items() <= expected.items()


def test_a_full_disk_ends_it_with_exit_code_4(run, here, monkeypatch, capsys):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(outputs, "atomic_write_bytes", full)
    code, errors = left(monkeypatch, capsys, run, "photos", "--out", "out")
    assert code == 4 and "no space left on the disk of out" in errors[0] and not os.listdir("out")


# videos


def write_video(path, frames, rate):
    av = pytest.importorskip("av", reason="videos need PyAV: pip install av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def frames_of(path):
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)], stream.average_rate


@pytest.mark.parametrize("size", [(48, 64), (37, 51)])
def test_a_video_gets_an_overlay_of_its_rate_length_and_size(run, here, size):
    original = [noise(number, *size) for number in range(13)]
    write_video("clip.mp4", original, rate=25)
    assert (
        predict(run, "clip.mp4", "photos/0.png", "--out", "out", "--frames", "--json", "summary.json", "--devices", "2")
        == 0
    )
    decoded, _ = frames_of("clip.mp4")
    found, rate = frames_of("out/clip_overlay.mp4")
    assert len(found) == len(decoded) == 13 and rate == 25
    indices = sorted(here.glob("out/clip_frames/*.png"))
    assert [path.name for path in indices] == [f"{number:06}.png" for number in range(1, 14)]
    for image, seen, index in zip(decoded, found, indices, strict=True):
        ids = np.asarray(Image.open(index))
        assert seen.shape == image.shape == (*size, 3) and ids.shape == size
        expected = 0.4 * image + 0.6 * np.array(CAMVID.colors)[ids]
        assert np.abs(seen - expected).mean() < 16  # H.264, at half the colors' resolution
    logits = logits_by_hand(run, decoded[3])
    assert (np.asarray(Image.open(indices[3])) == logits.argmax(axis=-1)).mean() > 0.99
    (row, _) = json.loads((here / "summary.json").read_text())["inputs"]
    assert (row["num_frames"], row["frames_per_second"], row["height"], row["width"]) == (13, 25, *size)


def test_videos_at_fault_are_named_and_the_others_done(run, here, monkeypatch, capsys):
    write_video("good.mp4", [noise(0, 32, 32)] * 3, rate=10)
    data = (here / "good.mp4").read_bytes()
    (here / "cut.mp4").write_bytes(data[: len(data) // 3])
    (here / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nphotos/0.png\n#EXT-X-ENDLIST\n")
    (here / "concat.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    (here / "empty.mp4").write_bytes(b"")
    names = [f"{name}.mp4" for name in ("cut", "list", "concat", "empty", "good")]
    code, errors = left(monkeypatch, capsys, run, *names, "--out", "out", "--json", "summary.json")
    summary = json.loads((here / "summary.json").read_text())
    assert code == 2 and [fault["file"] for fault in summary["faults"]] == names[:4]
    assert [path.name for path in here.glob("out/*")] == ["good_overlay.mp4"]
    assert errors[0].count("cannot be read as a video") == 4


def test_without_the_library_videos_and_cameras_are_refused_with_the_command_to_install_it(
    run, here, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "av", None)
    (here / "a.mp4").write_bytes(b"x")
    for path in ("a.mp4", "0"):
        code, errors = left(monkeypatch, capsys, run, path, "--out", "out")
        assert code == 2 and "pip install" in errors[0] and not (here / "out").exists()


def test_a_camera_that_is_not_there_is_reported(run, here, monkeypatch, capsys):
    pytest.importorskip("av", reason="cameras need PyAV: pip install av")
    code, errors = left(monkeypatch, capsys, run, "99", "photos/0.png", "--out", "out")
    assert code == 2 and "camera 99" in errors[0] and (here / "out/0.png").is_file()


def test_a_camera_s_frame_is_segmented(run, here, monkeypatch):
    """Segment FFmpeg's test image instead of a camera's, read by the same code."""
    pytest.importorskip("av", reason="cameras need PyAV: pip install av")
    from segnet_jax.inference import video

    def picture(number):
        return video._first_frame(video.load_av(), "testsrc=size=50x38:rate=5", "lavfi", f"camera {number}")

    monkeypatch.setattr(prediction_pipeline, "camera_frame", picture)
    assert predict(run, "0", "--out", "out") == 0
    assert Image.open("out/camera-0.png").size == (50, 38)


def test_a_very_wide_picture_has_an_overlay_too():
    data, ending = prediction_files.picture_file(np.zeros((1, 66_000, 3), np.uint8))
    assert ending == ".png" and Image.open(io.BytesIO(data)).size == (66_000, 1)


def test_the_config_s_fit_is_followed_where_it_has_one():
    assert Sizing.of(Config(), "trained", (0, 0), 64).fit == getattr(Config(), "fit", "stretch")


@pytest.mark.parametrize(
    "words, size",
    [
        (["--size", "native", "RUN", "PHOTO"], "native"),
        (["--size=native", "RUN", "PHOTO"], "native"),
        (["RUN", "--size", "24", "32", "PHOTO"], (24, 32)),
        (["RUN", "PHOTO", "--size", "trained"], "trained"),
    ],
    ids=str,
)
def test_the_size_may_stand_before_the_run_and_the_images(words, size):
    options = parse_flags(command.PredictOptions, words, prog="segnet_jax.predict", description="")
    assert (options.size, options.run, options.paths) == (size, "RUN", ("PHOTO",))


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--size", "natve", "RUN", "PHOTO"],
            "--size must be trained, native or HEIGHT WIDTH, got natve; nearest: native",
        ),
        (["RUN", "PHOTO", "--size", "5"], "--size must be trained, native or HEIGHT WIDTH, got 5"),
        (["--size", "5", "RUN", "PHOTO"], "--size must be trained, native or HEIGHT WIDTH, got 5"),
    ],
    ids=str,
)
def test_a_wrong_size_is_one_line(words, message):
    with pytest.raises(UserError) as error:
        parse_flags(command.PredictOptions, words, prog="segnet_jax.predict", description="")
    assert str(error.value) == message

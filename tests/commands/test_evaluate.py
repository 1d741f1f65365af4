"""Test the evaluate command: it reproduces the run's scores with any batch size and number of devices."""

import base64
import io
import json
import sys
import time
from collections import Counter

import jax
import numpy as np
import pytest
from PIL import Image
from report_runs import CONFUSION, HOSTILE, make_run

from segnet_jax import evaluate as command
from segnet_jax import train
from segnet_jax.config.flags import parse_config, parse_flags
from segnet_jax.constants import VOID
from segnet_jax.reporting.evaluations import Images, read_images, write_evaluation
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import OutOfMemory
from segnet_jax.training import evaluation
from segnet_jax.training.evaluation import evaluate as score_split

FLAGS = (
    "--data synthetic --scenes 8 9 --image-size 24 32 --init none --depth 1 --width 0.0625 --epochs 1 --devices 2 "
    "--batch-size-per-device 2 --class-weights none"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "trained"
    config = parse_config([*FLAGS.split(), "--run", str(folder)], prog="segnet_jax.train", description="")
    assert train.train(config) == 0
    return folder


def evaluate(*flags):
    return command.evaluate(
        parse_flags(command.EvaluateOptions, [str(flag) for flag in flags], prog="p", description="")
    )


def test_evaluating_a_run_gives_the_scores_that_its_training_found(trained, tmp_path, capsys):
    assert evaluate(trained, "--json", tmp_path / "scores.json") == 0
    ours = json.loads((tmp_path / "scores.json").read_text())
    stored = json.loads((trained / "result.json").read_text())
    assert ours["per_class"] == stored["per_class"] and ours["miou"] == stored["miou"] and ours["num_images"] == 9
    low, high = ours["interval"]["miou"]
    assert ours["interval"] == stored["interval"] and low < ours["miou"] < high
    assert ours["differences"] == stored["differences"] and stored["protocol"] == "custom"
    differences = stored["differences"]
    assert differences["depth"] == [5, 1] and differences["dataset"] == ["camvid-tutorial", "synthetic"]
    assert "devices" not in differences and "global_batch_size" not in differences  # two devices of two images
    images = read_images(io.BytesIO(base64.b64decode(ours["images"])))
    assert images.confusions.sum(axis=0).tolist() == ours["confusion"] and len(images.names) == 9
    assert "SignSymbol" in capsys.readouterr().out


def test_the_seconds_of_an_evaluation_are_without_compiling(trained, tmp_path, monkeypatch):
    compiled = jax.stages.Lowered.compile

    def slowly(*args, **settings):
        time.sleep(3)
        return compiled(*args, **settings)

    monkeypatch.setattr(jax.stages.Lowered, "compile", slowly)
    assert evaluate(trained, "--json", tmp_path / "scores.json", "--no-boundary") == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert 0 < found["seconds"] < 3 and found["images_per_second"] == pytest.approx(9 / found["seconds"])


def test_out_of_memory_advises_only_flags_that_evaluate_has(trained, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")

    monkeypatch.setattr(command, "_evaluate", full)
    with pytest.raises(OutOfMemory, match="--batch-size-per-device 4 at 24x32; try --batch-size-per-device 2$"):
        evaluate(trained, "--devices", 1)
    with pytest.raises(OutOfMemory, match="--batch-size-per-device 1 at 24x32; use a device with more memory$"):
        evaluate(trained, "--devices", 1, "--batch-size-per-device", 1)


def test_the_worst_images_are_those_that_a_look_at_all_of_them_finds():
    generator = np.random.default_rng(0)
    labels = np.where(generator.random((11, 4, 5)) < 0.2, VOID, generator.integers(0, 3, (11, 4, 5))).astype(np.uint8)
    labels[7] = VOID  # an image without a labeled pixel is not among the worst
    predictions = generator.integers(0, 3, labels.shape).astype(np.uint8)
    order = np.append(generator.permutation(11), [-1])  # the last place of the last batch is padding
    places = order.reshape(3, 2, 2)  # batches, devices, images a device

    def matrix(i):
        pairs = zip(labels[i].ravel(), predictions[i].ravel(), strict=True)
        counts = Counter(pair for pair in pairs if i >= 0 and pair[0] != VOID)
        return [[counts[known, predicted] for predicted in range(3)] for known in range(3)]

    def score(_, index):
        confusions = np.array([[matrix(i) for i in of_device] for of_device in index], np.int32)
        boundaries = np.stack([index] * 4, axis=-1)[:, :, None]  # what is counted of an image, here its number
        return {"confusions": confusions, "boundaries": boundaries, "loss": 1.0}, {"prediction": predictions[index]}

    seen = {}
    found = score_split(score, {}, places, places, keep=[0, 7], num_worst=4, on_prediction=seen.__setitem__)
    assert found.confusions.tolist() == [matrix(i) for i in range(11)]
    assert found.confusion.tolist() == found.confusions.sum(axis=0).tolist()
    shares = {i: (predictions[i] == labels[i]).sum() / (labels[i] != VOID).sum() for i in range(11) if i != 7}
    assert found.accuracies == pytest.approx(shares) and {*found.predictions} == {0, 7}
    assert np.array_equal([seen[i] for i in range(11)], predictions) and len(seen) == 11
    assert found.boundaries.tolist() == [[[i] * 4] for i in range(11)]
    assert list(found.worst) == sorted(shares, key=shares.get)[:4]
    assert all(np.array_equal(picture, predictions[i]) for i, picture in found.worst.items())


def of_two_devices():
    """Score six images as the second of two devices, one image per device."""
    generator = np.random.default_rng(1)
    matrices = generator.integers(1, 9, (6, 2, 2)).astype(np.int32)
    places = np.arange(6).reshape(3, 2, 1)

    def score(_, index):
        prediction = np.full((1, 1, 2, 2), index[1, 0], np.uint8)
        counts = {"confusions": matrices[index], "boundaries": np.zeros((*index.shape, 2, 4), np.int32), "loss": 0.0}
        return counts, {"prediction": prediction}

    return matrices, score_split(score, {}, places, places, first_device=1, keep=[0, 1], num_worst=6)


def test_a_process_of_several_knows_all_matrices_and_the_predictions_of_its_own_images():
    matrices, found = of_two_devices()
    assert np.array_equal(found.confusions, matrices) and np.array_equal(found.confusion, matrices.sum(axis=0))
    assert found.accuracies.keys() == found.worst.keys() == {1, 3, 5} and found.predictions.keys() == {1}
    assert all((picture == i).all() for i, picture in found.worst.items())


def test_matrices_of_more_images_than_there_is_room_for_are_summed_and_not_kept(monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_CELLS", 5 * 4)
    matrices, found = of_two_devices()
    assert found.confusions is None and np.array_equal(found.confusion, matrices.sum(axis=0))


def test_matrices_of_single_images_stay_kept_of_the_newest_evaluation_and_the_best(tmp_path):
    folder = make_run(tmp_path / "run", steps=(5,))
    classes, images = HOSTILE, Images(("a",), CONFUSION[None].astype(np.int32))
    for step, best in ((5, None), (10, 5), (15, 5), (20, 15)):
        found = {"classes": classes, "confusion": CONFUSION, "loss": 1.0, "pictures": []}
        write_evaluation(folder, step, **found, images=images, best=best)
        there = {int(path.stem.split("_")[1]) for path in (folder / "evaluations").glob("images_*.npz")}
        assert there == {step, best} - {None}


def counted(trained, folder, devices, batch):
    path = folder / f"{devices}-{batch}.json"
    flags = ("--devices", devices, "--batch-size-per-device", batch, "--json", path)
    assert evaluate(trained, *flags) == 0
    result = json.loads(path.read_text())
    return result["confusion"], result["boundary_f1"]


BATCHES = [(devices, batch) for devices in (1, 8) for batch in (1, 4, 7, 8)]


@pytest.mark.slow
def test_confusion_matrix_and_boundary_f1_do_not_depend_on_batch_and_devices(trained, tmp_path):
    expected = counted(trained, tmp_path, 3, 2)
    assert 0 < np.sum(expected[0]) <= 9 * 24 * 32 and 0 < expected[1]["script"] <= expected[1]["paper"] < 1
    assert {each: counted(trained, tmp_path, *each) == expected for each in BATCHES} == dict.fromkeys(BATCHES, True)


@pytest.mark.slow
def test_233_images_are_counted_alike_in_every_batch_and_on_all_devices(tmp_path):
    folder = tmp_path / "run"
    flags = FLAGS.replace("--scenes 8 9 --image-size 24 32", "--scenes 8 233 --image-size 45 61").split()
    assert train.train(parse_config([*flags, "--run", str(folder)], prog="p", description="")) == 0
    found = {each: counted(folder, tmp_path, *each) for each in BATCHES}
    assert len({json.dumps(each) for each in found.values()}) == 1


def test_pictures_can_do_without_photographs(trained, tmp_path):
    for flags, folder in (([], tmp_path / "all"), (["--masks-only"], tmp_path / "masks")):
        assert evaluate(trained, "--pictures", folder, *flags) == 0
    widths = [Image.open(tmp_path / kind / "latest.png").width for kind in ("all", "masks")]
    assert widths[1] < widths[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["no/run"], "no run no/run: there is no such folder"),
        (["."], "no run in .: it contains no config.toml"),
        (["RUN", "--split", "test"], "synthetic has no test split; choose --split from train, val"),
        (["RUN", "--data", "nowhere"], "no folder nowhere"),
        (["RUN", "--checkpoint", "worst"], "--checkpoint"),
        (["RUN", "--json", "no/scores.json"], "--json no/scores.json: there is no folder"),
        (["RUN", "--json", "."], "--json . is a folder: name a file"),
        (["RUN", "--json", "photo.png"], "--json photo.png already exists and is not overwritten"),
        (["RUN", "--pictures", "scores.json"], "--pictures scores.json is a file; give a folder"),
    ],
)
def test_a_mistake_is_reported_in_one_line_with_exit_code_2(trained, flags, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.json").touch()
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", ["evaluate", *(str(trained) if flag == "RUN" else flag for flag in flags)])
    with pytest.raises(SystemExit) as left:
        run_command(command.main)
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and line.startswith("error: ") and message in line

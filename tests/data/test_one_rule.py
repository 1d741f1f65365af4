"""Check that `predict --labels` and `evaluate` read labels by one rule: their scores are equal to the last digit."""

import dataclasses
import json

import numpy as np
import pytest
from field_folders import BLUE, COLORS, RED, palette_png, save, scene
from PIL import Image

from segnet_jax import evaluate, predict, train
from segnet_jax.config.flags import parse_config, parse_flags
from segnet_jax.constants import VOID
from segnet_jax.data.labels.label_mapping import StoredLabels, labels_from_json
from segnet_jax.runs import run_folder
from segnet_jax.system.errors import UserError

FLAGS = (
    "--image-size 24 32 --init none --depth 1 --width 0.0625 --epochs 1 --devices 1 --batch-size-per-device 2 "
    "--class-weights none --val-fraction 0.4"
)


def mapped(folder):
    for i in range(6):
        image, ids = scene(i)
        save(image, folder / f"images/n{i}.png")
        save(((ids == RED) * 255).astype(np.uint8), folder / f"masks/n{i}.png")
    return "--map 255=1", "masks"


def started(folder):
    for i in range(6):
        image, ids = scene(i)
        save(image, folder / f"images/n{i}.png")
        save(ids + np.uint8(1), folder / f"labels/n{i}_mask.png")
    return "--labels-start-at 1", "labels"


def colored(folder):
    for i in range(6):
        image, ids = scene(i)
        save(image, folder / f"images/n{i}.png")
        order = [0, 2, 1] if i % 2 else [0, 1, 2]
        palette_png(np.argsort(order)[ids].astype(np.uint8), COLORS[order], folder / f"labels/n{i}.png")
    rows = (f"{r} {g} {b} {name}\n" for (r, g, b), name in zip(COLORS, ("ground", "disc", "box"), strict=True))
    (folder / "label_colors.txt").write_text("".join(rows))
    return "", "labels"


def turned(folder):
    for i in range(6):
        image, ids = scene(i)
        exif = Image.Exif()
        exif[0x0112] = 6  # the stored pixels lie on their side
        stored = Image.fromarray(image).transpose(Image.Transpose.ROTATE_90)
        (folder / "images").mkdir(exist_ok=True)
        stored.save(folder / f"images/n{i}.png", exif=exif)
        save(ids, folder / f"labels/n{i}.png")
    return "--exif apply", "labels"


def letterboxed(folder):
    for i in range(6):
        image, ids = scene(i, 48, 40 + 8 * i)
        save(image, folder / f"images/n{i}.png")
        save(np.where(ids == BLUE, VOID, ids).astype(np.uint8), folder / f"labels/n{i}.png")
    return "--fit letterbox", "labels"


def masked(folder):
    for i in range(6):
        image, ids = scene(i)
        save(image, folder / f"images/n{i}.png")
        for name, area in (("disc", ids == RED), ("box", (ids == BLUE) | (np.indices(ids.shape)[0] < 12))):
            save((area * 255).astype(np.uint8), folder / f"masks/{name}/n{i}.png")
    return "--mask-order box disc", "masks"


@pytest.mark.parametrize(
    "make", [mapped, started, colored, turned, letterboxed, masked], ids=lambda make: make.__name__
)
def test_predict_scores_what_evaluate_scores(make, tmp_path):
    folder, run = tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    flags, labels = make(folder)
    config = parse_config(
        [*f"--data {folder} {FLAGS} {flags} --run {run}".split()], prog="segnet_jax.train", description=""
    )
    assert train.train(config) == 0
    results = {}
    for name, options in (
        ("evaluate", ["--split", "train", "--no-boundary"]),
        ("predict", []),
    ):
        path = tmp_path / f"{name}.json"
        if name == "evaluate":
            words = [str(run), *options, "--devices", "1", "--json", str(path)]
            assert evaluate.evaluate(parse_flags(evaluate.EvaluateOptions, words, prog="p", description="")) == 0
        else:
            names = json.loads((run / "data.json").read_text())["train"]
            images = [str(folder / file) for file in names if file.startswith("images/")]
            words = [str(run), *images, "--labels", str(folder / labels), "--out", str(tmp_path / "out")]
            words += ["--devices", "1", "--json", str(path)]
            assert predict.predict(parse_flags(predict.PredictOptions, words, prog="p", description="")) == 0
        results[name] = json.loads(path.read_text())
    assert results["evaluate"]["num_images"] == results["predict"]["num_scored"] > 2
    assert results["evaluate"]["confusion"] == results["predict"]["confusion"]
    assert results["evaluate"]["miou"] == results["predict"]["miou"]


def test_a_run_stores_the_rule_and_a_damaged_one_is_reported(tmp_path):
    from segnet_jax.data.labels.label_mapping import TUTORIAL, LabelRule

    rule = LabelRule(11, TUTORIAL.ids, (((1, 2, 3), 0), ((0, 0, 0), VOID)), ((255, 1),), 1, "ignore", 0, ("palette",))
    stored = StoredLabels(TUTORIAL.classes, rule)
    text = json.dumps(stored.as_json())
    assert labels_from_json(json.loads(text)) == stored
    (tmp_path / "labels.json").write_text(text)
    assert run_folder.labels_of(tmp_path) == stored
    for change in ({"num_classes": 300}, {"ids": [[0, 12]]}, {"by_color": ["x"]}, {"start": -1}, {"map": [[1]]}):
        broken = json.loads(text)
        broken["rule"] |= change
        (tmp_path / "labels.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match="labels.json is damaged"):
            run_folder.labels_of(tmp_path)
    (tmp_path / "labels.json").unlink()
    (tmp_path / "elsewhere").write_text(text)
    (tmp_path / "labels.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="labels.json is a link"):
        run_folder.labels_of(tmp_path)
    assert dataclasses.is_dataclass(stored)

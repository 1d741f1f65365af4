"""Test `evaluate --calibrate` against numpy and scipy, and its use by `predict`."""

import json

import numpy as np
import pytest
from made_runs import CONFIG, make_run
from PIL import Image
from scipy.optimize import minimize_scalar

import segnet_jax
from segnet_jax import evaluate, predict
from segnet_jax.config.flags import parse_flags
from segnet_jax.constants import VOID
from segnet_jax.inference.averaging import Views
from segnet_jax.inference.predictor import Sizing
from segnet_jax.inference.stored_temperature import conditions, read_temperature
from segnet_jax.runs.load_dataset import open_data
from segnet_jax.system.errors import UserError


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def calibrate(run, *flags):
    words = list(map(str, (run, "--calibrate", "--no-boundary", *flags)))
    assert evaluate.evaluate(parse_flags(evaluate.EvaluateOptions, words, prog="p", description="")) == 0
    return json.loads((run / "calibration.json").read_text())


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def calibration_error(logits, label, temperature):
    """Return the expected calibration error over 15 bins, Guo et al. 2017, equation 5."""
    probabilities = np.exp(log_softmax(logits / temperature))
    confidence, right = probabilities.max(axis=-1), logits.argmax(axis=-1) == label
    bins = np.minimum((15 * confidence).astype(int), 14)
    gaps = [abs(right[bins == i].sum() - confidence[bins == i].sum()) for i in range(15)]
    return sum(gaps) / len(label)


@pytest.mark.slow
def test_the_temperature_is_fitted_on_all_labeled_pixels_and_used_by_predict(run, tmp_path, capsys):
    network = segnet_jax.load(run)
    split = open_data(network.config).splits["val"]
    images, labels = map(np.stack, zip(*map(split.read, range(len(split))), strict=True))
    logits = np.asarray(network.logits(images), np.float64)
    known, flat = labels != VOID, logits[labels != VOID]

    def nll(temperature):
        return -np.take_along_axis(log_softmax(flat / temperature), labels[known][:, None].astype(int), -1).mean()

    found = calibrate(run, "--devices", 1)
    best = minimize_scalar(nll, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
    assert found["temperature"] == pytest.approx(best, rel=1e-3) and abs(best - 1) > 0.1
    for when, temperature in (("before", 1.0), ("after", found["temperature"])):
        assert found["nll"][when] == pytest.approx(nll(temperature), rel=1e-4)
        expected = calibration_error(flat, labels[known], temperature)
        assert found["calibration_error"][when] == pytest.approx(expected, abs=2e-4)
    assert found["nll"]["after"] < found["nll"]["before"] and found["split"] == "val" and found["step"] == 7
    eight = calibrate(run, "--devices", 8, "--batch-size-per-device", 1)
    assert eight["temperature"] == pytest.approx(found["temperature"], rel=1e-5)
    assert "temperature" in capsys.readouterr().out

    Image.fromarray(images[0]).save(tmp_path / "a.png")
    (tmp_path / "plain").mkdir()
    for folder in ("calibrated", "plain"):
        flags = [run, tmp_path / "a.png", "--out", tmp_path / folder, "--confidence"]
        flags += ["--json", tmp_path / f"{folder}.json"]
        predict.predict(parse_flags(predict.PredictOptions, list(map(str, flags)), prog="p", description=""))
        (run / "calibration.json").unlink(missing_ok=True)
    one, other = (np.asarray(Image.open(tmp_path / folder / "a.png")) for folder in ("calibrated", "plain"))
    assert np.array_equal(one, other)
    confidence = np.asarray(Image.open(tmp_path / "calibrated/a_confidence.png")) / 255
    assert np.abs(confidence - np.exp(log_softmax(logits[0] / eight["temperature"])).max(axis=-1)).max() < 0.0025
    assert json.loads((tmp_path / "calibrated.json").read_text())["temperature"] == eight["temperature"]
    assert "temperature" not in json.loads((tmp_path / "plain.json").read_text())


SIZING = Sizing.of(CONFIG, "trained", (0, 0), 0)


@pytest.mark.parametrize(
    "changed, fitted_for",
    [
        ({}, ""),
        ({"meta": {"step": 8, "data": {"val": "abc"}}}, "another checkpoint"),
        ({"views": Views(flip=True)}, "other --tta flags"),
        ({"sizing": Sizing.of(CONFIG, "native", (0, 0), 0)}, "images of the training size"),
        ({"sizing": Sizing.of(CONFIG, (48, 64), (0, 0), 0)}, "images of the training size"),
        ({"sizing": Sizing.of(CONFIG, "trained", (16, 16), 8)}, "images of the training size"),
        ({"meta": {"step": 8, "data": {"val": "other"}}}, "another checkpoint and other images"),
    ],
)
def test_a_calibration_is_used_under_its_own_conditions_only(changed, fitted_for, tmp_path, logged):
    own = {"meta": {"step": 7, "data": {"val": "abc"}}, "views": Views(), "sizing": SIZING}
    (tmp_path / "calibration.json").write_text(json.dumps({"temperature": 2.5} | conditions(**own)))
    assert read_temperature(str(tmp_path), conditions(**own | changed)) == (1 if fitted_for else 2.5)
    notes = [line for line in logged if line.endswith("so the confidence is not calibrated")]
    assert len(notes) == bool(fitted_for) and all(f"was fitted for {fitted_for}, so" in line for line in notes)


def test_it_is_fitted_on_the_images_of_the_run_only(run, tmp_path):
    other = make_run(tmp_path / "other", changed_meta={"data": {"train": "a", "val": "b"}})
    with pytest.raises(UserError, match=r"--calibrate needs the validation images of .*other, got others: use the"):
        calibrate(other)
    assert not (other / "calibration.json").exists()


def test_it_is_kept_where_another_file_cannot_be_written(run, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("--csv is not possible")

    monkeypatch.setattr(evaluate, "_write_csv", fail)
    with pytest.raises(UserError, match="--csv is not possible"):
        calibrate(run, "--csv", tmp_path / "a.csv")
    assert json.loads((run / "calibration.json").read_text())["size"] == "trained"


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"temperature": 0}', '{"temperature": 1e9, "step": 7, "tta": {}}'),
        f'{{"temperature": 1{"0" * 400}}}',  # float() overflows
        f'{{"temperature": NaN, {json.dumps(conditions({"step": 7}, Views(), SIZING))[1:]}',
    ],
)
def test_a_damaged_calibration_is_named(tmp_path, content):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(UserError, match="calibration.json is damaged: run evaluate --calibrate again, or delete it"):
        read_temperature(str(tmp_path), conditions({"step": 7}, Views(), SIZING))


def test_a_large_calibration_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "calibration.json", "wb") as file:
        file.truncate(2**30)
    with pytest.raises(UserError, match="has 1,073,741,824 bytes, over the limit of 10,000"):
        read_temperature(str(tmp_path), conditions({"step": 7}, Views(), SIZING))

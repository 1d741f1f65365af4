"""Check that a flag that names an output file overwrites only files written by the same flag."""

import json
import os
import shutil

import numpy as np
import pytest
from made_runs import make_run
from PIL import Image

from segnet_jax import doctor, evaluate, export, prepare, report
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.reporting.figures import batch_picture, check_pictures, prediction_pictures
from segnet_jax.reporting.sheet import is_asked_for
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import check_place, write_result

SAMPLE = "data/sample"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text('{\n  "miou": 0.5\n}\n')
    return tmp_path / "run"


USERS = {  # that begin as results do, or look like them
    "a thesis in braces": b"{\n",
    "a notebook": b'{"cells": []}',
    "the mark further on": b'{"a": 1, "written_by": "segnet_jax"}',
    "another program's": b'{"written_by": "me"}',
    "text": b"thesis",
}


@pytest.mark.parametrize("name", USERS)
def test_json_replaces_nothing_of_the_users(tmp_path, name):
    path = tmp_path / "mine.json"
    path.write_bytes(USERS[name])
    with pytest.raises(UserError, match="--json .* already exists"):
        check_place("json", str(path))


def test_json_replaces_what_json_wrote_and_an_empty_file(tmp_path):
    path = tmp_path / "ours.json"
    path.touch()
    check_place("json", str(path))
    write_result(path, {"miou": 0.5})
    check_place("json", str(path))
    assert json.loads(path.read_text()) == {"written_by": "segnet_jax", "miou": 0.5}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_json_must_not_be_a_pipe_folder_or_device(tmp_path, make):
    make(tmp_path / "out.json")
    with pytest.raises(UserError, match="--json"):
        check_place("json", str(tmp_path / "out.json"))


def commands(run, path):
    return {
        "evaluate": lambda: evaluate.evaluate(evaluate.EvaluateOptions(str(run), json=str(path))),
        "export": lambda: export.export(export.ExportOptions(str(run), json=str(path))),
        "report": lambda: report.report(report.ReportOptions((str(run),), json=str(path))),
        "doctor": lambda: doctor.doctor(doctor.DoctorOptions(SAMPLE, json=str(path))),
    }


@pytest.mark.parametrize("name", ["result.json", "progress.png"])
def test_output_files_are_not_created_before_the_run(run, name):
    (run / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="is a file of the run itself"):
        check_place("json", str(run / name))
    check_place("json", str(run.parent / name))


@pytest.mark.parametrize("name", ["result.json", "config.toml", "checkpoints/last.json"])
@pytest.mark.parametrize("command", ["evaluate", "export", "report", "doctor"])
def test_json_replaces_no_file_of_a_run(run, command, name):
    before = (run / name).read_bytes()
    with pytest.raises(UserError, match="--json .* (already exists|is a file of the run itself)"):
        commands(run, run / name)[command]()
    assert (run / name).read_bytes() == before


def test_a_picture_replaces_a_picture_that_was_asked_for_alone(run, tmp_path):
    images, labels = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 8), np.uint8)
    batch_picture(images, labels, CAMVID, run / "first_batch.png", "of the run")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    for path in (run / "first_batch.png", tmp_path / "photo.png", run / "config.toml"):
        with pytest.raises(UserError, match="--picture .* (already exists|is a file of the run itself)"):
            doctor.doctor(doctor.DoctorOptions(SAMPLE, picture=str(path)))
    batch_picture(images, labels, CAMVID, tmp_path / "look.png", "asked for", asked_for=True)
    check_place("picture", str(tmp_path / "look.png"), is_ours=is_asked_for)
    Image.open(tmp_path / "look.png").load()


@pytest.mark.parametrize("name", ["step_0000007.png", "latest.png"])
def test_pictures_replace_no_picture_of_a_run(run, name):
    masks = np.zeros((1, 8, 8), np.uint8)
    drawn = (None, masks, masks, ["a"], CAMVID, run / "samples", 7, "val")
    prediction_pictures(*drawn)
    before = (run / "samples" / name).read_bytes()
    with pytest.raises(UserError, match="--pictures .* already exists"):
        check_pictures(run / "samples", 7)
    with pytest.raises(UserError, match="--pictures .* already exists"):
        prediction_pictures(*drawn, asked_for=True)
    assert (run / "samples" / name).read_bytes() == before
    shutil.rmtree(run / "samples")
    for _ in range(2):  # what it has drawn so it replaces
        prediction_pictures(*drawn, asked_for=True)


def test_a_report_replaces_the_runs_own_alone(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    assert report.report(report.ReportOptions((str(other),))) == 0
    before = (other / "report.html").read_bytes()
    (tmp_path / "mine.html").write_text("<p>mine")
    os.mkfifo(tmp_path / "pipe.html")
    for runs, out in (
        ((run,), other / "report.html"),
        ((run, other), other / "report.html"),
        ((run,), tmp_path / "mine.html"),
        ((run,), tmp_path / "pipe.html"),
        ((run,), run / "config.toml"),
    ):
        with pytest.raises(UserError, match="exists, is not a report of this run"):
            report.report(report.ReportOptions(tuple(map(str, runs)), out=str(out)))
    assert (other / "report.html").read_bytes() == before
    assert report.report(report.ReportOptions((str(other),))) == 0  # its own, again


def test_export_replaces_what_was_exported_alone(run, tmp_path):
    out = tmp_path / "out"
    (out / "saved_model").mkdir(parents=True)
    (out / "network.onnx").write_text("mine")
    (out / "saved_model" / "mine.txt").write_text("mine")
    for name, file in (("onnx", "network.onnx"), ("saved-model", "saved_model/mine.txt")):
        pytest.importorskip("onnx")
        with pytest.raises(UserError, match=f"contains {file}, which differs from what was exported there"):
            export.export(export.ExportOptions(str(run), format=(name,), out=str(out), overwrite=True))
    (out / "export.json").write_text(json.dumps({"onnx": {"files": {"network.onnx": "0" * 64}}}))
    with pytest.raises(UserError, match="which differs from what was exported"):  # it was changed since
        export.export(export.ExportOptions(str(run), format=("onnx",), out=str(out), overwrite=True))


@pytest.mark.parametrize("content", ["[]", '{"onnx": 1}', '{"onnx": {"files": []}}', "[" * 100_000])
def test_a_strange_report_of_an_export_is_left_alone(run, tmp_path, content):
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(UserError, match="is not an export report"):
        export.export(export.ExportOptions(str(run), out=str(tmp_path), overwrite=True))
    assert (tmp_path / "export.json").read_text() == content


def test_json_must_differ_from_the_exports_own_files(run, tmp_path):
    for name in ("export.json", "network.stablehlo"):
        with pytest.raises(UserError, match="a file of the export itself"):
            export.export(export.ExportOptions(str(run), out=str(tmp_path / "out"), json=str(tmp_path / "out" / name)))


def test_prepared_weights_replace_prepared_weights_alone(tmp_path):
    np.savez(tmp_path / "mine.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="--out .* already exists"):
        prepare.prepare_vgg("vgg16", tmp_path / "mine.npz")

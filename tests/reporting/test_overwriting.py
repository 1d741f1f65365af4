"""Check that a flag that names an output file overwrites only files written by the same flag."""

import dataclasses
import importlib
import json
import os
import shutil

import numpy as np
import pytest
from made_runs import make_run
from PIL import Image

from segnet_jax import check, doctor, evaluate, export, portability, predict, prepare, report
from segnet_jax.__main__ import COMMANDS
from segnet_jax.benchmarks import run as benchmark
from segnet_jax.config.fields import Config
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.reporting.figures import batch_picture, check_pictures, prediction_pictures
from segnet_jax.reporting.sheet import is_asked_for
from segnet_jax.sweep.plan import Plan
from segnet_jax.sweep.run_all import train_all
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
    for _ in range(2):  # a file that it has drawn is replaced
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
    assert report.report(report.ReportOptions((str(other),))) == 0  # a file of its own, again


def test_export_replaces_what_was_exported_alone(run, tmp_path):
    out = tmp_path / "out"
    (out / "saved_model").mkdir(parents=True)
    (out / "network.onnx").write_text("mine")
    (out / "saved_model" / "mine.txt").write_text("mine")
    for name, file in (("onnx", "network.onnx"), ("saved-model", "saved_model/mine.txt")):
        pytest.importorskip("onnx")
        with pytest.raises(UserError, match=f"contains {file}, which differs from the files exported there"):
            export.export(export.ExportOptions(str(run), format=(name,), out=str(out), overwrite=True))
    (out / "export.json").write_text(json.dumps({"onnx": {"files": {"network.onnx": "0" * 64}}}))
    with pytest.raises(UserError, match="which differs from the files exported"):  # it was changed since
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


# --- every flag of every command that names an output ---

MEASURED = {"portability": 1, "name": "a", "device": "a", "settings": {}, "precisions": {}}


def compare(folder, **outputs):
    (folder / "measured.json").write_text(json.dumps(MEASURED))
    options = portability.CompareOptions((str(folder / "measured.json"),), overwrite=True, **outputs)
    return portability.report(options)


def predict_to(run, **outputs):
    return predict.predict(predict.PredictOptions(str(run), (f"{SAMPLE}/val/val_00000.png",), **outputs))


WRITERS = {  # (run, an existing file of the user's); flags that name a folder get the file's
    "sweep --out": lambda run, mine: train_all(Plan(mine.parent, ())),
    "check --json": lambda run, mine: check.check(Config(data="synthetic"), str(mine)),
    "benchmark --json": lambda run, mine: benchmark.benchmark(benchmark.BenchmarkOptions(json=str(mine))),
    "doctor --json": lambda run, mine: doctor.doctor(doctor.DoctorOptions(SAMPLE, json=str(mine))),
    "doctor --picture": lambda run, mine: doctor.doctor(doctor.DoctorOptions(SAMPLE, picture=str(mine))),
    "doctor --classes": lambda run, mine: doctor.doctor(doctor.DoctorOptions(SAMPLE, classes=str(mine))),
    "evaluate --json": lambda run, mine: evaluate.evaluate(evaluate.EvaluateOptions(str(run), json=str(mine))),
    "evaluate --csv": lambda run, mine: evaluate.evaluate(evaluate.EvaluateOptions(str(run), csv=str(mine))),
    "evaluate --pictures": lambda run, mine: evaluate.evaluate(
        evaluate.EvaluateOptions(str(run), pictures=str(mine.parent))
    ),
    "export --json": lambda run, mine: export.export(export.ExportOptions(str(run), json=str(mine))),
    "export --out": lambda run, mine: export.export(
        export.ExportOptions(str(run), out=str(mine.parent), overwrite=True)
    ),
    "export --overwrite": lambda run, mine: export.export(
        export.ExportOptions(str(run), format=("safetensors",), out=str(mine.parent), overwrite=True)
    ),
    "predict --json": lambda run, mine: predict_to(run, json=str(mine)),
    "predict --out": lambda run, mine: predict_to(run, out=str(mine.parent)),
    "prepare --out": lambda run, mine: prepare.prepare_vgg("vgg16", mine),
    "report --json": lambda run, mine: report.report(report.ReportOptions((str(run),), json=str(mine))),
    "report --out": lambda run, mine: report.report(report.ReportOptions((str(run),), out=str(mine))),
    "portability lower --out": lambda run, mine: portability.lower(
        dataclasses.replace(Config(), init="none"), mine.parent, ("cpu",)
    ),
    "portability measure --json": lambda run, mine: portability.measure(
        portability.MeasureOptions(str(run), json=str(mine))
    ),
    "portability report --json": lambda run, mine: compare(run.parent, json=str(mine)),
    "portability report --out": lambda run, mine: compare(run.parent, out=str(mine)),
    "portability report --overwrite": lambda run, mine: compare(
        run.parent, out=str(mine), json=str(run.parent / "b.json")
    ),
}
MINE = {  # flag -> a name that it would write in a folder
    "evaluate --pictures": "step_0000007.png",
    "export --out": "network.stablehlo",
    "export --overwrite": "network.safetensors",
    "predict --out": "val_00000.png",
    "sweep --out": "sweep.md",
}


def test_these_are_all_flags_that_name_an_output():
    found = {"check --json", "portability lower --out"}  # parsed by hand
    words = {"MeasureOptions": "portability measure", "CompareOptions": "portability report"}
    for command in COMMANDS:
        module = importlib.import_module(f"segnet_jax.{'benchmarks.run' if command == 'benchmark' else command}")
        for name, value in vars(module).items():
            if dataclasses.is_dataclass(value) and name.endswith("Options") and value.__module__ == module.__name__:
                fields = {field.name for field in dataclasses.fields(value)}
                if command == "doctor":
                    assert set(doctor.OUTPUTS) <= fields
                outputs = fields & {"json", "out", "overwrite", "picture", "pictures", "csv"}
                outputs |= fields & {"classes"} if command == "doctor" else set()  # in `convert`, an input
                found |= {f"{words.get(name, command)} --{output}" for output in outputs}
    assert found == WRITERS.keys()


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("content", [b"{\n", b'{"cells": []}', b"# Thesis\n"])
def test_no_output_flag_replaces_a_file_of_the_users(run, tmp_path, name, content):
    mine = tmp_path / "mine" / MINE.get(name, "thesis.json")
    mine.parent.mkdir()
    mine.write_bytes(content)
    with pytest.raises(UserError, match="not overwritten|already contains"):
        WRITERS[name](run, mine)
    assert [*mine.parent.iterdir()] == [mine] and mine.read_bytes() == content


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in MINE and "lower" not in name])
def test_no_output_flag_adds_a_file_to_a_checkpoint(run, name):
    place = run / "checkpoints" / "newest" / "8" / "new.json"
    with pytest.raises(UserError, match="is a file of the run itself"):
        WRITERS[name](run, place)
    assert not place.exists()


def test_a_comparison_replaces_comparisons_alone(run, tmp_path):
    out, json_file = tmp_path / "both.md", tmp_path / "both.json"
    for _ in range(2):
        assert compare(tmp_path, out=str(out), json=str(json_file)) == 0
    assert out.read_text().startswith("<!-- written by segnet_jax.portability report -->\n")
    out.write_text("# One network on several machines\n")
    with pytest.raises(UserError, match="--out .* not overwritten"):
        compare(tmp_path, out=str(out))


def test_an_output_is_no_other_output_and_no_input(run, tmp_path):
    both = str(tmp_path / "both.json")
    measured = str(tmp_path / "measured.json")
    for call in (
        lambda: compare(tmp_path, out=both, json=both),
        lambda: compare(tmp_path, json=measured),
        lambda: doctor.doctor(doctor.DoctorOptions(SAMPLE, json=both, picture=both)),
        lambda: report.report(report.ReportOptions((str(run),), out=both, json=both)),
        lambda: predict_to(run, out=str(tmp_path / "out"), json=str(tmp_path / "out" / "val_00000.png")),
    ):
        with pytest.raises(UserError, match="is also"):
            call()
    assert json.loads((tmp_path / "measured.json").read_text()) == MEASURED and not os.path.exists(both)


def test_prepared_weights_replace_prepared_weights_alone(tmp_path):
    np.savez(tmp_path / "mine.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="--out .* already exists"):
        prepare.prepare_vgg("vgg16", tmp_path / "mine.npz")

"""Test the export command: its files, its errors, and that an incorrect export is discarded."""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from made_runs import make_run
from safetensors import safe_open

import segnet_jax
from segnet_jax import export as command
from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_run
from segnet_jax.config.flags import parse_flags
from segnet_jax.exporting import formats, stablehlo
from segnet_jax.exporting.parity import compare
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import ExitError, UserError
from segnet_jax.training import build_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


def export(*flags):
    return command.export(parse_flags(command.ExportOptions, [str(flag) for flag in flags], prog="p", description=""))


def test_an_export_writes_its_file_checksum_and_comparison(run, tmp_path, capsys):
    assert export(run, "--format", "safetensors", "stablehlo", "--json", tmp_path / "found.json") == 0
    folder = run / "export"
    files = {"network.stablehlo", "network.safetensors", "README.md"}
    assert {path.name for path in folder.iterdir()} == files | {"export.json"}
    report = json.loads((folder / "export.json").read_text())
    assert {"written_by": "segnet_jax"} | report == json.loads((tmp_path / "found.json").read_text())
    assert set(report) == {"safetensors", "stablehlo"}
    printed = capsys.readouterr().out
    assert {name for entry in report.values() for name in entry["files"]} == files
    for entry in report.values():
        for name, digest in entry["files"].items():
            assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert entry["bytes"] == sum((folder / name).stat().st_size for name in entry["files"])
        assert entry["classes"][0] == "Sky" and entry["colors"][0] == [128, 128, 128]
        assert {(tuple(each["size"]), each["batch"]) for each in entry["parity"]} == {
            (size, batch) for size in ((24, 32), (97, 131)) for batch in (1, 3)
        }
        assert all(each["agreement"] >= 0.9999 and each["images"] == 3 for each in entry["parity"])
        assert entry["use"].splitlines()[0] in printed
    assert "readable" not in report["safetensors"]  # no program
    readable = report["stablehlo"]["readable"]
    assert f"written by jax {jax.__version__};" in readable and "versions of the next 6 months" in readable
    assert readable in printed
    for module in (segnet_jax, jax):  # source locations in a program must not contain local paths
        assert str(pathlib.Path(module.__file__).parents[1]).encode() not in (folder / "network.stablehlo").read_bytes()


def test_the_saved_model_predicts_in_tensorflow_what_the_network_predicts(run, tmp_path):
    try:
        assert export(run, "--format", "saved-model", "--out", tmp_path) == 0
    except UserError as error:  # TensorFlow 2.21 cannot read jax 0.12's output; any other error is a failure
        assert "cannot read programs of jax" in str(error) and not list(tmp_path.iterdir())
        pytest.skip(str(error))
    use = json.loads((tmp_path / "export.json").read_text())["saved-model"]["use"]
    names = {"images": np.random.default_rng(0).integers(0, 256, (2, 21, 33, 3), np.uint8)}
    exec(use, names)
    np.testing.assert_array_equal(names["prediction"], segnet_jax.load(run).predict(names["images"], size="native"))
    assert names["logits"].shape == (2, 21, 33, 11)


def test_the_printed_code_runs(run, tmp_path):
    assert export(run, "--out", tmp_path / "out") == 0
    use = json.loads((tmp_path / "out" / "export.json").read_text())["stablehlo"]["use"]
    names = {"images": np.random.default_rng(0).integers(0, 256, (2, 21, 33, 3), np.uint8)}
    exec(use, names)
    assert names["prediction"].shape == (2, 21, 33) and names["logits"].shape == (2, 21, 33, 11)


@pytest.mark.slow  # inference/test_exported_folder.py loads it
def test_the_metadata_of_the_weights_suffice_to_rebuild_the_network(tmp_path):
    run = make_run(
        tmp_path / "run",
        **{"network": "segnet-basic", "depth": 2, "decoder": "single-channel", "upsampling": "learnt"},
        **{"pooling": "ceil", "encoder_addition": True, "dropout": 0.5, "conv_bias": True, "batch_norm_epsilon": 1e-3},
    )
    assert export(run, "--format", "safetensors", "--out", tmp_path / "out", "--images", 1) == 0
    with safe_open(tmp_path / "out" / "network.safetensors", "np") as file:
        fields, classes = (json.loads(file.metadata()[key]) for key in ("network", "classes"))
    fields["image_size"] = tuple(fields["image_size"])
    built = build_model.build_model(Config(**fields), len(classes), "float32")
    assert built == build_model.build_model(read_run(run), 11, "float32")


@pytest.mark.slow
def test_an_earlier_export_is_overwritten_only_with_overwrite(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "network.safetensors").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["p", str(run), "--format", "safetensors", "--out", str(out)])
    assert ended(command.main, capsys) == (
        2,
        f"error: {out} already contains network.safetensors; add --overwrite, or choose another folder with --out",
    )
    assert (out / "network.safetensors").read_text() == "mine" and len(list(out.iterdir())) == 1
    with pytest.raises(UserError, match="network.safetensors, which differs from the files exported there"):
        export(run, "--format", "safetensors", "--out", out, "--overwrite")
    assert (out / "network.safetensors").read_text() == "mine"
    (out / "network.safetensors").unlink()
    assert export(run, "--format", "safetensors", "--out", out) == 0
    with pytest.raises(UserError, match="already contains network.safetensors, README.md; add --overwrite"):
        export(run, "--format", "safetensors", "--out", out)
    assert export(run, "--format", "safetensors", "--out", out, "--overwrite") == 0
    assert export(run, "--format", "stablehlo", "--out", out) == 0  # next to the existing export
    assert set(json.loads((out / "export.json").read_text())) == {"safetensors", "stablehlo"}


def ended(main, capsys):
    """Run a command that fails; return its exit code and its only error line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(line) == 1
    return exit_.value.code, line[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["no/run"], "no run no/run"),
        (["RUN", "--format", "torchscript"], "torchscript"),
        (["RUN", "--data", "nowhere"], "no folder nowhere"),
        (["RUN", "--json", "no/found.json"], "--json no/found.json: there is no folder"),
        (["RUN", "--images", "0"], "--images must be at least 1, got 0"),
        (["RUN", "--size", "24", "32"], "--size works only with --format onnx alone"),
        (["RUN", "--format", "onnx", "--size", "1", "32"], "--size must be from 2 to 16384, got 1 32"),
        (["RUN", "--out", "file/in"], "cannot create the folder file/in"),
    ],
)
def test_a_user_error_prints_one_line_and_exits_with_2(run, flags, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    flags = [str(run) if flag == "RUN" else flag for flag in flags]
    monkeypatch.setattr(sys, "argv", ["p", "--out", "new", *flags])
    code, line = ended(command.main, capsys)
    assert code == 2 and message in line


def test_a_missing_library_is_named_with_the_command_that_installs_it(run, monkeypatch, capsys):
    monkeypatch.setattr(formats, "_is_installed", lambda module: module != "onnxruntime")
    monkeypatch.setattr(sys, "argv", ["p", str(run), "--format", "onnx"])
    line = 'error: --format onnx needs onnxruntime, which is not installed: pip install -e ".[onnx]"'
    assert ended(command.main, capsys) == (2, line)


def test_an_export_that_differs_from_the_network_is_discarded(run, tmp_path, monkeypatch):
    def read(subject, path):
        right = subject.jitted(subject.model, subject.variables)
        return lambda images: (right(images)[0], right(images)[1] + np.float32(1))

    monkeypatch.setattr(stablehlo, "read", read)
    with pytest.raises(ExitError, match="does not match the network and is discarded") as ending:
        export(run, "--out", tmp_path / "out")
    assert ending.value.exit_code == 1 and not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_formats_that_match_are_kept_and_a_limit_can_be_overridden(run, tmp_path, monkeypatch, logged):
    def read(subject, path):
        right = subject.jitted(subject.model, subject.variables)
        return lambda images: (right(images)[0], right(images)[1] + np.float32(1))

    monkeypatch.setattr(stablehlo, "read", read)
    both = (run, "--format", "stablehlo", "safetensors", "--images", 1, "--out", tmp_path)
    with pytest.raises(ExitError, match="the stablehlo export does not match .*--accept-mismatch.*; kept: safetensors"):
        export(*both)
    assert {path.name for path in tmp_path.iterdir()} == {"network.safetensors", "README.md", "export.json"}
    assert set(json.loads((tmp_path / "export.json").read_text())) == {"safetensors"}
    logged.clear()
    assert export(*both, "--accept-mismatch", "--overwrite") == 0
    (warning,) = (line for line in logged if "mismatch" in line)
    assert "the stablehlo export does not match the network" in warning
    assert set(json.loads((tmp_path / "export.json").read_text())) == {"safetensors", "stablehlo"}


@pytest.mark.parametrize(
    "fit, word",
    [
        pytest.param("stretch", "stretched", marks=pytest.mark.slow),
        ("letterbox", "padding"),
        pytest.param("crop", "cropped", marks=pytest.mark.slow),
    ],
)
def test_exports_state_the_size_and_fit_of_training(tmp_path, fit, word, capsys):
    made = make_run(tmp_path / "run", fit=fit)
    assert export(made, "--format", "safetensors", "--images", 1) == 0
    with safe_open(made / "export" / "network.safetensors", "np") as file:
        stated = json.loads(file.metadata()["images"])
    assert (stated["height"], stated["width"], stated["fit"]) == (24, 32, fit)
    assert json.loads((made / "export" / "export.json").read_text())["safetensors"]["images"] == stated
    assert stated["note"].startswith("trained on images of 24x32 (height x width)") and word in stated["note"]
    assert stated["note"] in capsys.readouterr().out


def test_an_onnx_file_of_fixed_size_is_compared_at_this_size_and_its_printed_code_runs(run, tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX is not installed: pip install -e '.[onnx]' runs these tests")
    assert export(run, "--format", "onnx", "--size", 33, 47, "--images", 2, "--out", tmp_path) == 0
    entry = json.loads((tmp_path / "export.json").read_text())["onnx"]
    assert [(each["size"], each["batch"], each["images"]) for each in entry["parity"]] == [([33, 47], 1, 2)]
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'opencv-python-headless<5'")
    names = {"image": np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)}
    exec(entry["use"], names)
    ids = segnet_jax.load(run).predict(names["image"], size="native")
    assert (names["prediction"][0] == ids).mean() > 0.999 and names["logits"].shape == (1, 33, 47, 11)


def test_parity_counts_each_pixel_once():
    images = [np.full((2, 3, 3), number, np.uint8) for number in range(4)]

    def network(images):
        logits = np.zeros((*images.shape[:3], 2), np.float32)
        logits[..., 1] = images[..., 0]
        return logits.argmax(-1).astype(np.uint8), logits

    def wrong_in_one_pixel_of_the_last_image(images):
        prediction, logits = (each.copy() for each in network(images))
        prediction[images[:, 0, 0, 0] == 3, 0, 0] = 0
        logits[images[:, 0, 0, 0] == 3, 0, 0] = 0.5
        return prediction, logits

    same, other = compare(network, [network, wrong_in_one_pixel_of_the_last_image], images, batch=3)
    assert (same.agreement, same.largest_difference, same.images) == (1, 0, 4)
    assert (other.agreement, other.within) == (23 / 24, 23 / 24)
    assert (other.largest_difference, other.largest_logit) == (2.5, 3)


def test_the_published_comparison_matches_its_file_and_the_limits():
    folder = pathlib.Path(__file__).parents[2] / "experiments" / "export"
    page = (folder / "README.md").read_text(encoding="utf-8")
    for name, entry in json.loads((folder / "parity.json").read_text())["exports"].items():
        assert {(tuple(each["size"]), each["batch"]) for each in entry["parity"]} == {
            (size, batch) for size in ((360, 480), (97, 131)) for batch in (1, 3)
        }
        for each in entry["parity"]:
            numbers = f"{each['batch']} | {each['images']} | {100 * each['agreement']:.4f} | {100 * each['within']:.2f}"
            size = "x".join(map(str, each["size"]))
            logits = f"{each['largest_difference']:.1e} | {each['largest_logit']:.1f}"
            assert f"| {name} | {size} | {numbers} | {logits} |" in page
            assert each["agreement"] >= 0.9999
            assert name != "stablehlo" or each["largest_difference"] <= 1e-4

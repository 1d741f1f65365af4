"""Test the GPU measurements: the variants compute the same, and the command runs at a small size."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import own_folders
import pytest

from segnet_jax.config.flags import parse_config
from segnet_jax.data.layouts import camvid
from segnet_jax.nn import SegNet
from segnet_jax.system.errors import UserError

HERE = pathlib.Path(__file__).parents[2] / "experiments" / "h200"
sys.path.insert(0, str(HERE))

import jpeg_copy  # noqa: E402
import measure  # noqa: E402
import variants  # noqa: E402


def loss_and_gradient(image):
    """Return the mean square of one image's logits and its gradients, with the network as currently patched."""
    model = SegNet(3, depth=2, width=1 / 16)

    def loss(params, statistics):
        variables = {"params": params, "batch_stats": statistics}
        logits, _ = model.apply(variables, image, train=True, mutable=["batch_stats"])
        return jnp.mean(logits**2)

    variables = model.init(jax.random.key(0), image, train=False)
    found, gradient = jax.jit(jax.value_and_grad(loss))(variables["params"], variables["batch_stats"])
    return found, jax.tree.leaves(gradient)


NAMES = [name for name in variants.VARIANTS if name != "ours"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_variant_computes_what_ours_computes(name):
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 13, 3)), jnp.float32)
    ours, our_gradient = loss_and_gradient(image)
    with variants.taken_out(name):
        theirs, their_gradient = loss_and_gradient(image)
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)
    for our, their in zip(our_gradient, their_gradient, strict=True):
        np.testing.assert_allclose(their, our, rtol=1e-4, atol=1e-6)


def test_a_variant_is_taken_out_while_entered_and_no_longer():
    target = sys.modules["segnet_jax.nn.segnet"]
    ours = target.BatchNormReLU
    with variants.taken_out("batch_norm_of_flax"):
        assert target.BatchNormReLU is variants.PlainBatchNormReLU
    assert target.BatchNormReLU is ours
    with pytest.raises(UserError, match="unknown variant 'nothing'; known: ours, "), variants.taken_out("nothing"):
        pass


def test_each_case_has_a_result_of_its_own_and_the_most_valuable_come_first(tmp_path):
    cases = measure.cases_of(tmp_path, "DIR", "vgg16.h5", dry_run=False)
    assert len({case.result for case in cases}) == len({case.name for case in cases}) == len(cases)
    names = [case.name for case in cases]
    assert names[:4] == ["train-bfloat16-16", "run", "camvid-strong", "infer-bfloat16-16"]
    assert {f"{what}-bfloat16-{batch}" for batch in (4, 16, 32, 64) for what in ("train", "infer")} <= set(names)
    assert all(pathlib.Path(case.command[0]).is_file() for case in cases if case.command[0] != "-m")
    without = [case.name for case in measure.cases_of(tmp_path, "DIR", "", dry_run=False)]
    assert set(names) - set(without) == {"camvid-strong", "camvid-tutorial"}


@pytest.mark.parametrize("dry_run", [False, True])
def test_the_flags_of_the_runs_are_accepted(dry_run, tmp_path):
    for case in measure.cases_of(tmp_path, "DIR", "vgg16.h5", dry_run):
        if case.command[:2] == ["-m", "segnet_jax.train"]:
            config = parse_config(case.command[2:], prog="segnet_jax.train", description="")
            assert config.run == str(case.result.parent) and config.devices == "1"


def result_of(rate, **more):
    row = {"images_per_second": rate, "ms_per_step": 4.0, "fraction_of_roofline": 0.5, "peak_memory_mb": 2000.0}
    return {"command": "", "seconds": 1.0, "exit_code": 0, "result": {"device": "a GPU", "train": row, **more}}


def test_the_summary_sets_variants_beside_ours_and_ours_beside_pytorch():
    cases = {"variant-ours": result_of(400.0), "variant-all_plain": result_of(100.0)}
    sides = {"ours": {"images_per_second": 300.0, "ms_per_step": 10.0}}
    compared = {"what": "training step", "sides": sides, "ours_over_fastest": 0.5}
    cases["peers-16"] = {"result": {"comparisons": [compared]}}
    table = measure.as_markdown({"cases": cases | {"failed": {"result": None}}})
    assert "| variant-all_plain | 100.0 | 4.00 | 50.0% |  | 2,000 | 0.25 |  |  |" in table
    assert "| peers-16: training step | 300.0 | 10.00 |  |  |  |  | 0.50 |  |" in table and "failed" not in table


def test_results_are_written_after_each_case_and_a_second_call_continues(tmp_path, monkeypatch, capsys):
    def case(name, code):
        return measure.Case(name, ["-c", code], tmp_path / f"{name}.json")

    good = "import json; json.dump({'train': {'images_per_second': 5.0}}, open(%r, 'w'))"
    first = case("first", good % str(tmp_path / "first.json"))
    second = case("second", "import sys; sys.exit('no such flag')")
    third = case("third", "import time; time.sleep(60)")
    monkeypatch.setattr(measure, "cases_of", lambda *args: [first, second, third])
    monkeypatch.setattr(measure, "versions", lambda: {"python": "3"})
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["measure.py", "--out", str(out), "--minutes", "0.2"])
    assert measure.main() == 2  # the second failed, the third was ended
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "results.json", "summary.md"]
    assert "no such flag" in (out / "log.txt").read_text() and "ended after" in (out / "log.txt").read_text()
    assert "| first | 5.0 |" in (out / "summary.md").read_text()

    second.command[:] = ["-c", good % str(tmp_path / "second.json")]
    monkeypatch.setattr(sys, "argv", ["measure.py", "--out", str(tmp_path / "again"), "--earlier", str(out)])
    third.command[:] = ["-c", good % str(tmp_path / "third.json")]
    (tmp_path / "first.json").unlink()  # is not run again
    capsys.readouterr()
    assert measure.main() == 0
    assert "first: " not in capsys.readouterr().out
    cases = json.loads((tmp_path / "again" / "results.json").read_text())["cases"]
    assert [each["result"]["train"]["images_per_second"] for each in cases.values()] == [5.0] * 3


def test_missing_modules_are_named_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "NEEDED", ("jax", "no_such_module", "no_such.child"))
    monkeypatch.setattr(sys, "argv", ["measure.py", "--out", str(tmp_path / "out")])
    assert measure.main() == 2 and "missing: no_such_module, no_such.child" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_jpeg_copy_is_a_dataset_of_the_tutorials_layout(tmp_path):
    samples = own_folders.scenes(3, 2)
    for split, each in samples.items():
        for name, image, label in each:
            own_folders.save(tmp_path / f"camvid/{split}/{name}.png", image)
            own_folders.save(
                tmp_path / f"camvid/{split}annot/{name}.png", np.where(label == 255, 11, label).astype("u1")
            )
        lines = [f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\n" for name, _, _ in each]
        (tmp_path / f"camvid/{split}.txt").write_text("".join(lines))
    assert jpeg_copy.copy(tmp_path / "camvid", tmp_path / "copy") == 5
    original, copy = (camvid.tutorial(tmp_path / name) for name in ("camvid", "copy"))
    for split in ("train", "val"):
        for index in range(len(original.splits[split])):
            (image, label), (jpeg, same) = (each.splits[split].read(index) for each in (original, copy))
            np.testing.assert_array_equal(same, label)
            assert 0 < np.abs(image.astype(int) - jpeg).mean() < 12


@pytest.mark.slow
def test_every_case_runs_at_a_small_size_on_the_cpu(tmp_path):
    command = [sys.executable, str(HERE / "measure.py"), "--dry-run", "--minutes", "60", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    cases = json.loads((tmp_path / "out" / "results.json").read_text())["cases"]
    assert list(cases) == [case.name for case in measure.cases_of(tmp_path, "synthetic", "", dry_run=True)]
    assert all(case["result"] for case in cases.values())

"""Test the GPU measurements: the variants compute the same, and the command runs at a small size."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segnet_jax.nn import SegNet
from segnet_jax.system.errors import UserError

HERE = pathlib.Path(__file__).parents[2] / "experiments" / "h200"
sys.path.insert(0, str(HERE))

import measure  # noqa: E402
import variants  # noqa: E402


def loss_and_gradient(image):
    """Return the mean square of one image's logits and its gradient leaves, with the network as currently patched."""
    model = SegNet(3, depth=2, width=1 / 16)

    def loss(params, statistics):
        variables = {"params": params, "batch_stats": statistics}
        logits, _ = model.apply(variables, image, train=True, mutable=["batch_stats"])
        return jnp.mean(logits**2)

    variables = model.init(jax.random.key(0), image, train=False)
    found, gradient = jax.jit(jax.value_and_grad(loss))(variables["params"], variables["batch_stats"])
    return found, jax.tree.leaves(gradient)


NAMES = [name for name in variants.VARIANTS if name != "ours"]


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
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


def test_each_case_has_a_result_of_its_own(tmp_path):
    cases = measure.cases(tmp_path, "DIR", dry_run=False)
    results = [command[command.index("--json") + 1] for command in cases.values() if "--json" in command]
    assert len(set(results)) == len(results) == len(cases) - 1  # but for the run, which leaves a folder
    assert {f"train-bfloat16-{batch}" for batch in (4, 16, 32, 64)} <= cases.keys()
    assert all(pathlib.Path(command[1]).is_file() for command in cases.values() if command[1] != "-m")


def test_the_summary_sets_variants_beside_ours(tmp_path):
    for name, rate in (("variant-ours", 400.0), ("variant-all_plain", 100.0)):
        row = {"images_per_second": rate, "ms_per_step": 4.0, "fraction_of_roofline": 0.5, "peak_memory_mb": 2000.0}
        (tmp_path / f"{name}.json").write_text(json.dumps({"device": "a GPU", "train": row}))
    table = measure.as_markdown(measure.summarize(tmp_path))
    assert "| variant-all_plain | 100.0 | 4.00 | 50.0% |  | 2,000 | 0.25 |" in table


@pytest.mark.slow
def test_every_case_runs_at_a_small_size_on_the_cpu(tmp_path):
    command = [sys.executable, str(HERE / "measure.py"), "--dry-run", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["cases"]
    assert {case["case"] for case in summary} == measure.cases(tmp_path, "synthetic", dry_run=True).keys()

"""Test the stored counts of compiled programs: their required figures, and the pages made from them."""

import json
import pathlib

import compiled_communication
import pytest
from communication import MACHINES

from segnet_jax.benchmarks.portability.compiled.chips import chip_names
from segnet_jax.benchmarks.portability.compiled.counts import PARTS
from segnet_jax.benchmarks.portability.compiled.report import compare_programs
from segnet_jax.benchmarks.portability.side_by_side import as_markdown

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
FOLDER = EXPERIMENTS / "portability" / "compiled"
FILES = sorted(FOLDER.glob("*.json"))
TOLERANCE = 1.02


def read(file):
    return json.loads(file.read_text())


def train_step(name):
    return json.loads((FOLDER / f"{name}.json").read_text())["programs"]["train"]


def test_the_files_are_those_of_the_readme():
    targets = {(content["target"]["name"], content["num_devices"]) for content in map(read, FILES)}
    assert {("h200", 1), ("h200", 8), ("v100", 1), ("v100", 8)} <= targets


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_complete_and_of_a_known_chip(file):
    content = read(file)
    assert content["target"]["name"] in chip_names() and content["target"]["sources"] and content["versions"]["jax"]
    name = f"{content['target']['name']}-{content['num_devices']}x{content['config']['batch_size_per_device']}"
    assert file.stem.startswith(f"{name}-{content['precision']}")
    assert not content["commit"].endswith("-dirty")
    for step in content["programs"].values():
        assert step["parts"].keys() <= {*PARTS, "layout", "other"}
        assert step["num_kernels"] == sum(step["kernels"].values())
        assert step["memory"]["peak"] > step["memory"]["temporary"] > 0 < step["compile_seconds"]


@pytest.mark.parametrize("name", [file.stem for file in FILES if not file.stem.startswith(("v5e", "v6e"))])
def test_every_convolution_of_the_training_step_is_3x3(name):
    assert train_step(name)["convolutions"]["windows"] == {"3x3": 77}


def test_sixteen_images_on_an_h200_take_few_kernels_and_bytes():
    step = train_step("h200-1x16-bfloat16")
    assert step["num_kernels"] <= 500 and step["mb_per_image"] <= 2345 * TOLERANCE


@pytest.mark.parametrize("name", [file.stem for file in FILES if "-8x" in file.stem and file.stem.startswith("h200")])
def test_on_eight_h200_only_statistics_are_summed_while_nothing_else_runs(name):
    collectives = train_step(name)["collectives"]
    assert {each["part"] for each in collectives if not each["is_async"]} <= {"batch_norm_sums"}
    if name.endswith("local"):
        assert len(collectives) <= 10
    gradients = sum(each["bytes"] for each in collectives if each["part"] == "gradient_sum")
    assert gradients == pytest.approx(4 * 29_441_419, rel=0.01)


def test_the_report_is_made_from_the_files():
    assert (FOLDER / "report.md").read_text() == as_markdown(compare_programs(list(map(read, FILES))))


@pytest.mark.parametrize("name", [file.stem for file in FILES if "train" in read(file)["programs"]])
def test_the_readme_has_a_row_of_each_training_step(name):
    step = train_step(name)
    numbers = f"| {step['num_kernels']:,} | {step['mb_per_image']:,.0f} | {step['memory']['temporary'] / 1e9:.2f} GB |"
    assert numbers in (FOLDER / "README.md").read_text()


def test_the_scaling_page_has_the_table_of_the_compiled_steps():
    assert compiled_communication.table() in (EXPERIMENTS / "scaling" / "README.md").read_text()


def test_a_collective_is_covered_by_what_runs_meanwhile():
    h200 = MACHINES["h200"]
    one = {"bytes": 28_000_000, "is_async": False, "between": {"gflop": 0, "bytes": 0}}
    needed = 40e-6 + 1.75 * 28e6 / 180e9  # a latency, and 2 x 7/8 of the bytes
    assert compiled_communication.uncovered_seconds(one, h200, 8) == pytest.approx(needed)
    covered = one | {"is_async": True, "between": {"gflop": 790 * 0.6 * 1e-4, "bytes": 4.3e12 * 0.8 * 2e-4}}
    assert compiled_communication.uncovered_seconds(covered, h200, 8) == pytest.approx(needed - 2e-4)
    assert compiled_communication.uncovered_seconds(covered | {"bytes": 8}, h200, 8) == 0

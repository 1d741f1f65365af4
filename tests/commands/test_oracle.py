"""Check that the oracle detects changed results and ignores renamings."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import orbax.checkpoint as ocp
import pytest
from oracle_readings import numbers, read_case
from PIL import Image
from program_hash import program_hash

X = jnp.ones((4, 3))
PARAMS = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3)), "c": jnp.ones(3)}


def hash_of(function, *args):
    return program_hash(jax.jit(function).lower(*args).as_text())[0]


def network(first, second, shift, x, activation=jax.nn.relu):
    return activation(x @ first + shift[None]) @ second


def base(params, x):
    return network(params["a"], params["b"], params["c"], x)


def test_a_program_is_the_same_when_its_functions_and_arguments_are_called_and_ordered_otherwise():
    def renamed(images, variables):
        @jax.jit
        def inlined_or_not(x):
            return network(variables["z"], variables["m"], variables["a"], x)

        return inlined_or_not(images)

    swapped = {"z": PARAMS["a"], "m": PARAMS["b"], "a": PARAMS["c"]}
    assert hash_of(base, PARAMS, X) == hash_of(renamed, X, swapped)


@pytest.mark.parametrize(
    "changed",
    [
        lambda params, x: network(params["a"], params["a"], params["c"], x),  # an argument of the same type twice
        lambda params, x: network(params["a"], params["b"], 2.0 * params["c"], x),
        lambda params, x: network(params["a"], params["b"], params["c"], x, activation=jnp.tanh),
        lambda params, x: (base(params, x), x),
    ],
)
def test_a_program_that_computes_something_else_has_another_hash(changed):
    assert hash_of(base, PARAMS, X) != hash_of(changed, PARAMS, X)


def test_loops_and_branches_count_with_what_they_hold():
    def repeated(scale, start):
        def program(carry, flag):
            carry = jax.lax.fori_loop(start, 5, lambda i, each: {"w": each["w"] * scale, "n": each["n"] + i}, carry)
            return jax.lax.cond(flag, lambda each: each["w"], lambda each: -each["w"], carry)

        return hash_of(program, {"w": X, "n": jnp.int32(0)}, jnp.bool_(True))

    def reordered(state, flag):
        state = jax.lax.fori_loop(0, 5, lambda i, each: {"z": each["z"] * 2.0, "a": each["a"] + i}, state)
        return jax.lax.cond(flag, lambda each: each["z"], lambda each: -each["z"], state)

    assert repeated(2.0, 0) == hash_of(reordered, {"z": X, "a": jnp.int32(0)}, jnp.bool_(True))
    assert len({repeated(2.0, 0), repeated(3.0, 0), repeated(2.0, 1)}) == 3


def made_case(folder, *, keys=("loss", "miou"), bias=0.5, loss=1.25, cell=7, pixel=3):
    """Write a case's folder as the commands do."""
    (folder / "run").mkdir(parents=True)
    (folder / "out").mkdir()
    row = {keys[0]: loss, "seconds": np.random.default_rng().random(), "step": 1}
    (folder / "run/metrics.jsonl").write_text(json.dumps(row))
    matrix = [[cell, 0, 1], [0, 5, 0], [2, 0, 9]]
    (folder / "scores.json").write_text(json.dumps({keys[1]: 0.375, "seconds": 0.1, "matrix": matrix}))
    Image.fromarray(np.full((4, 5), pixel, np.uint8)).save(folder / "out/a.png")
    state = {keys[0]: {"kernel": np.arange(6.0).reshape(2, 3)}, keys[1]: np.float32([bias]), "step": np.int32(1)}
    ocp.PyTreeCheckpointer().save((folder / "run/checkpoints/newest/1/state").resolve(), state)
    return folder


def record_of(folder):
    return json.loads(json.dumps({"machine": {}, "cases": {"made": read_case(folder)}}))


def test_keys_and_times_say_nothing(tmp_path):
    reference = record_of(made_case(tmp_path / "a"))
    verdicts = oracle.compare(reference, record_of(made_case(tmp_path / "b", keys=("error", "iou"))))
    assert len(verdicts) == 6 and all(equal for _, equal, _ in verdicts)


@pytest.mark.parametrize(
    "change, item",
    [
        ({"bias": np.nextafter(np.float32(0.5), 1)}, "state, arrays"),
        ({"loss": 1.2500000000000002}, "log"),
        ({"cell": 8}, "confusion matrix"),
        ({"pixel": 4}, "out/a.png"),
    ],
)
def test_the_item_that_changed_is_named(tmp_path, change, item):
    verdicts = oracle.compare(record_of(made_case(tmp_path / "a")), record_of(made_case(tmp_path / "b", **change)))
    bad = [name for name, equal, _ in verdicts if not equal]
    assert any(item in name for name in bad) and all(item in name or "scores.json" in name for name in bad)


def test_what_is_missing_new_or_failed_is_different(tmp_path):
    reference = record_of(made_case(tmp_path / "a"))
    without = json.loads(json.dumps(reference))
    del without["cases"]["made"]["log"]
    failed = {"machine": {}, "cases": {"made": {"commands": ["failed", "exit code 2"]}}}
    for one, other in ((reference, without), (without, reference), (reference, failed)):
        assert not all(equal for _, equal, _ in oracle.compare(one, other))


def test_more_numbers_are_allowed_and_fewer_are_not():
    few, more = numbers({"a": [0.5, {"b": 2}]}), numbers({"x": [0.5, 2, 3.5], "seconds": 9.0})
    assert oracle.compare_numbers(few, more) == (True, "1 new: 3.5")
    assert oracle.compare_numbers(more, few) == (False, "1 of 3 gone: 3.5")


def test_the_command_exits_with_1_if_two_records_differ(tmp_path, capsys):
    files = {}
    for name, loss in (("a", 1.0), ("same", 1.0), ("other", 2.0)):
        files[name] = pathlib.Path(tmp_path / f"{name}.json")
        files[name].write_text(json.dumps(record_of(made_case(tmp_path / name, loss=loss))))
    assert oracle.main(["compare", str(files["a"]), str(files["same"])]) == 0
    assert oracle.main(["compare", str(files["a"]), str(files["other"])]) == 1
    printed = capsys.readouterr().out
    assert "DIFFERENT  made: log: 1 of 1 rows, first row 1: 1 of 2 gone: 1.0; 1 new: 2.0" in printed
    assert printed.endswith("5 items equal, 1 different\n")


def test_the_data_are_the_same_every_time(tmp_path):
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        oracle.make_data(tmp_path / name)
        files.append(
            {f.relative_to(tmp_path / name): f.read_bytes() for f in (tmp_path / name).rglob("*") if f.is_file()}
        )
    assert files[0] == files[1] and len(files[0]) == 2 * 27 + 3 + 2

"""Test that the reader of `result.json` returns its content or raises a one-line error, whatever the file contains."""

import json
import tracemalloc

import pytest

from segnet_jax import api
from segnet_jax.runs.cross_validation import summarize_folds
from segnet_jax.runs.run_folder import read_result
from segnet_jax.system.errors import UserError
from segnet_jax.system.untrusted_files import parse_json

RESULT = {"miou": 0.5, "mean_accuracy": None, "global_accuracy": 1, "step": 2, "num_images": 4, "split": "val"}
RESULT |= {"per_class": {"Sky": {"iou": 0.5}, "Car": {"iou": None}}, "seconds": 1.5}


def test_a_result_is_returned_as_it_is_also_without_the_scores_that_older_versions_lack(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    assert read_result(tmp_path) == RESULT
    assert api._read_run(tmp_path).scores.iou == {"Sky": 0.5, "Car": None}


@pytest.mark.parametrize(
    "text, why",
    [
        ("[1, 2]", "it is not a JSON object"),
        ("{", "Expecting"),
        ("[" * 100_000, "nested too deeply"),
        ('{"miou": "x"}', "it has no"),
        *(
            (json.dumps(RESULT | change), why)
            for change, why in (
                ({"miou": "x"}, "miou is 'x', not a number from 0 to 1"),
                ({"miou": True}, "miou is True"),
                ({"miou": float("nan")}, "miou is nan"),
                ({"mean_dice": 10**400}, "mean_dice is 1000"),
                ({"per_class": [1]}, "per_class does not map each class to its iou"),
                ({"per_class": {"Sky": 0.5}}, "per_class does not map each class to its iou"),
                ({"per_class": {"Sky": {"iou": "x"}}}, "iou of Sky is 'x'"),
                ({"step": 1.5}, "step is 1.5"),
                ({"num_images": None}, "num_images is None"),
                ({"seconds": "x"}, "seconds is 'x'"),
                ({"split": ["val"]}, "split is"),
            )
        ),
        *((json.dumps({k: v for k, v in RESULT.items() if k != key}), f"it has no {key}") for key in list(RESULT)[:5]),
    ],
)
def test_a_damaged_or_foreign_result_is_answered_in_one_line(tmp_path, text, why):
    (tmp_path / "result.json").write_text(text)
    for read in (read_result, api._read_run):
        with pytest.raises(UserError, match=rf"result.json is damaged \(.*{why}.*\): restore it, or delete") as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


def test_folds_with_other_classes_are_refused():
    with pytest.raises(UserError, match="the results of fold-1, fold-2 have different classes"):
        summarize_folds({"fold-1": RESULT, "fold-2": RESULT | {"per_class": {"Sea": {"iou": 0.5}}}})


def test_json_of_many_lists_is_refused_before_it_takes_memory(tmp_path):
    (tmp_path / "result.json").write_bytes(b'{"x": [' + b"[]," * 2_000_000 + b"[]]}")  # 6 MB; 130 MB when it is read
    tracemalloc.start()
    with pytest.raises(UserError, match="result.json is damaged .it has over 2,000,000 lists and objects"):
        read_result(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()
    assert parse_json(b"[" + b"[0]," * 999_990 + b"1]")[-1] == 1

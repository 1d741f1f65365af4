"""Test `metric_mean_f1.patch`: the value by hand; its place in result, log, report, table and published results."""

import io
import json

import numpy as np
import pytest
from test_train import meta_of, run

from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.metrics.bootstrap import intervals
from segnet_jax.metrics.confusion import scores
from segnet_jax.metrics.table import METRICS
from segnet_jax.reporting.published import score_columns
from segnet_jax.reporting.tables import print_table


def test_it_matches_a_hand_computed_value():
    """Check mean F1 over two classes; a third class without ground truth or predictions is left out."""
    confusion = np.array([[6, 2, 0], [3, 5, 0], [0, 0, 0]])
    expected = (2 * 6 / (8 + 9) + 2 * 5 / (8 + 7)) / 2
    assert scores(confusion).mean_f1 == pytest.approx(expected)
    assert METRICS["mean_f1"].function(np.stack([confusion, 2 * confusion])) == pytest.approx([expected, expected])
    assert intervals([np.repeat(confusion[None], 3, axis=0)])["mean_f1"] == pytest.approx((expected, expected))
    assert score_columns()["mean_f1"] == "F1"


def test_a_run_has_it_in_result_log_and_report(tmp_path):
    folder = tmp_path / "run"
    assert run("--run", folder) == 0
    result = json.loads((folder / "result.json").read_text())
    confusion = np.array(meta_of(folder, "best")["best"]["confusion"])
    assert result["mean_f1"] == pytest.approx(scores(confusion).mean_f1) and 0 < result["mean_f1"] < 1
    low, high = result["interval"]["mean_f1"]
    assert low <= result["mean_f1"] <= high
    rows = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    assert all(0 <= row["mean_f1"] < 1 for row in rows if row["kind"] == "val")
    assert "<dt>mean F1</dt>" in (folder / "report.html").read_text()
    file = io.StringIO()
    print_table(scores(np.eye(11, dtype=int)), CAMVID, file=file)
    assert "mean F1 100.0 %" in " ".join(file.getvalue().split())

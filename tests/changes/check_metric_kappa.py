"""Test `metric_kappa.patch`: the value by hand, and the metric in result, log, report, table and published results."""

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
    """Check kappa of 16 pixels: 11 are right, and by chance (8 * 9 + 8 * 7) / 16^2, a half of all."""
    confusion = np.array([[6, 2, 0], [3, 5, 0], [0, 0, 0]])
    expected = (11 / 16 - 1 / 2) / (1 - 1 / 2)
    assert scores(confusion).kappa == pytest.approx(expected)
    assert METRICS["kappa"].function(np.stack([confusion, 2 * confusion])) == pytest.approx([expected, expected])
    assert intervals([np.repeat(confusion[None], 3, axis=0)])["kappa"] == pytest.approx((expected, expected))
    assert score_columns()["kappa"] == "kappa"


def test_a_run_has_it_in_result_log_and_report(tmp_path):
    folder = tmp_path / "run"
    assert run("--run", folder) == 0
    result = json.loads((folder / "result.json").read_text())
    confusion = np.array(meta_of(folder, "best")["best"]["confusion"])
    assert result["kappa"] == pytest.approx(scores(confusion).kappa) and -1 < result["kappa"] < 1
    low, high = result["interval"]["kappa"]
    assert low <= result["kappa"] <= high
    rows = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    assert all(-1 <= row["kappa"] < 1 for row in rows if row["kind"] == "val")
    assert "<dt>Cohen&#39;s kappa</dt>" in (folder / "report.html").read_text()
    file = io.StringIO()
    print_table(scores(np.eye(11, dtype=int)), CAMVID, file=file)
    assert "Cohen's kappa 100.0 %" in " ".join(file.getvalue().split())

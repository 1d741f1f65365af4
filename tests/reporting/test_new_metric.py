"""Check that a new row of `METRICS` reaches scores, files, console, report and published results."""

import io
import json

import numpy as np
import pytest
from report_runs import CONFUSION, HOSTILE, make_run

from segnet_jax.metrics import table
from segnet_jax.metrics.bootstrap import intervals
from segnet_jax.metrics.confusion import scores, selection_score
from segnet_jax.reporting import environment
from segnet_jax.reporting.metrics_log import read_metrics
from segnet_jax.reporting.page.compare import comparison
from segnet_jax.reporting.page.render import comparison_html, report_html
from segnet_jax.reporting.page.run_summary import read_run_summary
from segnet_jax.reporting.published import SeedAverage, compare_with_published, print_published
from segnet_jax.reporting.run_logger import RunLogger
from segnet_jax.reporting.tables import print_table
from segnet_jax.runs.result import by_statistics

EXPECTED = 4 / 3 * 126 / 175  # CONFUSION has 50 + 60 + 10 + 6 correct pixels of 175


def scaled_accuracy(confusion):
    """Return a value that no other metric has, as a new metric."""
    return 4 / 3 * table.global_accuracy(confusion)


@pytest.fixture(autouse=True)
def new_metric(monkeypatch):
    row = table.Metric("scaled", "scaled accuracy", scaled_accuracy, "SA", format=lambda value: f"<{value:.4f}>")
    monkeypatch.setitem(table.METRICS, row.key, row)


def test_it_is_a_score_and_may_select_the_best_checkpoint():
    assert scores(CONFUSION).scaled == scores(CONFUSION).values["scaled"] == pytest.approx(EXPECTED)
    assert selection_score({"confusion": CONFUSION.tolist()}, "scaled") == pytest.approx(EXPECTED)
    with pytest.raises(AttributeError, match="no attribute 'kappa'"):
        _ = scores(CONFUSION).kappa


def test_it_is_in_the_result_with_an_interval_and_for_each_kind_of_statistics():
    about = {"protocol": "demo", "split": "val", "num_images": 1, "seconds": 1.0, "images_per_second": 1.0, "seed": 0}
    result = environment.result(scores(CONFUSION), HOSTILE, device="1 x cpu", **about)
    assert result["scaled"] == pytest.approx(EXPECTED)
    low, high = intervals([np.repeat(CONFUSION[None], 3, axis=0)])["scaled"]
    assert low == high == pytest.approx(EXPECTED)
    both = by_statistics({"running": CONFUSION, "recompute": CONFUSION})
    assert both["batch_norm"]["recompute"]["scaled"] == pytest.approx(EXPECTED)


def test_it_is_in_the_log(tmp_path):
    run = {"total_steps": 9, "steps_per_epoch": 1, "images_per_step": 1, "first_step": 0, "seconds_before": 0.0}
    about = {"resumed": False, "title": "", "device": "", "about": {}, "classes": HOSTILE}
    with RunLogger(tmp_path, **run, **about, should_stop=lambda: True) as logger:
        logger.log_evaluation(1, CONFUSION, 0.5, [], [], {})
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["scaled"] == pytest.approx(EXPECTED)


def test_it_is_in_the_printed_table():
    file = io.StringIO()
    print_table(scores(CONFUSION), HOSTILE, file=file)
    assert f"scaled accuracy <{EXPECTED:.4f}>" in " ".join(file.getvalue().split())


def test_it_is_in_the_report_and_in_comparisons(tmp_path):
    folder = make_run(tmp_path / "run")
    result = json.loads((folder / "result.json").read_text()) | {"scaled": EXPECTED, "interval": {"scaled": [0.5, 1]}}
    (folder / "result.json").write_text(json.dumps(result))
    run = read_run_summary(folder)
    page = report_html(run)
    assert "<dt>scaled accuracy</dt><dd>&lt;0.9600&gt;</dd>" in page
    assert "scaled accuracy &lt;0.5000&gt; to &lt;1.0000&gt;" in page
    assert [row.values for row in comparison([run, run]).scores if row.name == "scaled accuracy"] == [[0.96, 0.96]]
    assert "&lt;0.9600&gt;" in comparison_html([run, run])


def test_it_is_a_column_of_the_published_results(tmp_path):
    ours = SeedAverage("a", (0,), "custom", "camvid-tutorial", "test", 233, 367, (360, 480), "none", {"scaled": 0.5})
    compared, file = compare_with_published([ours]), io.StringIO()
    print_published(compared, file)
    assert "SA" in file.getvalue()
    page = report_html(read_run_summary(make_run(tmp_path / "run")), compared)
    assert '<th scope="col">SA</th>' in page and "SA: scaled accuracy" in page

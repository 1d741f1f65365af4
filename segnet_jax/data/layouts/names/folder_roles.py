"""Classify the folders of a dataset by name, as images or labels of a split."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from segnet_jax.data.layouts.names.name_pairs import VISUAL, nfc, words

IMAGE_WORDS = frozenset(
    "image images img imgs photo photos picture pictures frame frames jpegimages input inputs sat raw original "
    "originals photographs".split()
)
LABEL_WORDS = frozenset(
    "label labels labelled labeled lbl mask masks annotation annotations annot annots anno annos ann gt gts "
    "groundtruth truth seg manual segs segm segmentation segmentations segmentationclass semantic trimap trimaps "
    "target targets lbls matte mattes segmap segmaps pixelmaps stuffthingmaps gtfine labelids labeltrainids maskes "
    "segmasks".split()
)
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainval", "trainset", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "valset", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "tst", "holdout"), "test"),
}
"""Word -> split."""
_SHORT_SPLITS = {"tr": "train", "ts": "test", "te": "test"}  # beside a word for images or labels: nnU-Net's imagesTr
_WEAK = frozenset(("semantic", "segmentation", "seg"))  # part of many datasets' names: any deeper word decides

_OTHER = frozenset(
    "instance instances panoptic overlay overlays preview previews npy depth polygons instancelabels".split()
)
_NEUTRAL = frozenset(
    "set data dataset datasets split splits prepped machine class png pngs jpg jpegs jpeg bit sem ground full fine "
    "trainvaltest resized files file folder dir k v object files new left img8bit".split()
)
_GLUED = re.compile(r"(train|training|val|valid|validation|test|testing)(annots?|labels?|masks?|images?|imgs?|gt|set)")

Role = Literal["images", "labels", "colored labels", "other", ""]


class Place(NamedTuple):
    """Content of a folder, according to its name.

    Attributes:
      role: "colored labels" are visualizations; "" if unknown.
      split: "train", "val" or "test"; empty if unknown.
      key: the rest of the path, which images and their labels share.
    """

    role: Role
    split: str
    key: tuple[str, ...]


def place_of(parts: Sequence[str]) -> Place:
    """Classify a folder by the parts of its path below the dataset folder."""
    split, key, found = "", [], set()
    for part in parts:
        tokens = [token for word in words(nfc(part)) for token in _unglued(word)]
        known = [token for token in tokens if token in SPLIT_WORDS]
        roles = {token for token in tokens if token in IMAGE_WORDS | LABEL_WORDS | _OTHER | VISUAL}
        if part.lower() == "segmentationobject":  # Pascal VOC's instances
            roles = {"instances"}
        if roles and not known:
            known = [token for token in tokens if token in _SHORT_SPLITS]
        if re.fullmatch(r"v?\d+(\.\d+)+", part):  # a version, such as Mapillary's v1.2
            continue
        if known:
            split = (SPLIT_WORDS | _SHORT_SPLITS)[known[-1]]
        if not known and not roles:
            key.append(nfc(part))
            continue
        found = (found - _WEAK if roles - _WEAK else found) | roles
        rest = [token for token in tokens if token not in {*known, *SPLIT_WORDS, *roles, *VISUAL, *_NEUTRAL}]
        rest = [token for token in rest if not token.isdecimal()]
        if rest:
            key.append("-".join(rest))
    return Place(_role(found), split, tuple(key))


def class_folders(folders: Collection[tuple[str, ...]], holds_labels: bool = False) -> dict[tuple[str, ...], Place]:
    """Return the label folders of a class that is called like a split, such as masks/train beside masks/bus.

    Args:
      folders: path parts of all folders with pictures.
      holds_labels: whether the dataset folder is a folder of labels.
    """
    places = {parts: place_of(parts) for parts in folders}
    of_images = {place.split for place in places.values() if place.role not in ("labels", "colored labels")}
    by_parent: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}  # parent -> its folders without a role -> split
    for parts in folders:
        last = place_of(parts[-1:])
        if not last.role:
            by_parent.setdefault(parts[:-1], {})[parts] = last.split
    found = {}
    for parent, splits in by_parent.items():
        above = place_of(parent)
        is_label = above.role in ("labels", "colored labels") or holds_labels
        if not is_label or "" not in splits.values() or len({*splits.values()}) != 2:
            continue
        for parts, split in splits.items():
            if split and (above.split or holds_labels or split not in of_images):
                found[parts] = above._replace(key=(*above.key, nfc(parts[-1])))
    return found


def _unglued(word: str) -> list[str]:
    """Split words such as trainannot, unless the whole word is known."""
    glued = _GLUED.fullmatch(word)
    return [*glued.groups()] if glued and word not in SPLIT_WORDS else [word]


def _role(found: set[str]) -> Role:
    if found & _OTHER:
        return "other"
    if found & LABEL_WORDS:
        return "colored labels" if found & VISUAL else "labels"
    if found & IMAGE_WORDS or found & {"rgb", "color", "colour"}:
        return "images"
    return "other" if found else ""


def is_label_name(stem: str) -> bool:
    """Return whether a file in an image folder is a label, by the last or first word of its name."""
    found = words(stem)
    return len(found) > 1 and (found[-1] in LABEL_WORDS or found[0] in LABEL_WORDS)


def images_among(paths: Sequence[Path]) -> list[Path]:
    """Return the images of a folder that also contains their labels: a.jpg and a_mask.png, a_m.png or a.png."""
    roles = {path.stem.lower() for path in paths}
    if roles & IMAGE_WORDS and roles & LABEL_WORDS:  # labelme's x_json/img.png, label.png, label_viz.png
        return [path for path in paths if path.stem.lower() in IMAGE_WORDS]
    labels = {path for path in paths if is_label_name(path.stem)}
    if labels and len(labels) < len(paths):
        rest = [path for path in paths if path not in labels]
        return [path for path in rest if not VISUAL & {*words(path.stem)[-1:]}] or rest
    photos = {path.stem for path in paths if path.suffix.lower() in (".jpg", ".jpeg")}
    pngs = {path.stem for path in paths if path.suffix.lower() == ".png"}
    if photos and photos == pngs:
        return [path for path in paths if path.suffix.lower() != ".png"]
    stems = {path.stem for path in paths}
    ends = Counter(stem[cut:] for stem in stems for cut in range(1, len(stem)) if stem[:cut] in stems)
    most = max((count for end, count in ends.items() if not end.isdecimal()), default=0)
    common = tuple(end for end, count in ends.items() if not end.isdecimal() and count >= 0.9 * most)
    rest = [path for path in paths if not (path.stem.endswith(common) and common)]
    return rest if most >= 3 and most >= 0.8 * len(rest) else list(paths)


def folders_with_pictures(root: Path, pictures: Sequence[Path]) -> dict[tuple[str, ...], list[Path]]:
    """Return path parts of each folder below the root -> image files directly in that folder."""
    found: dict[tuple[str, ...], list[Path]] = {}
    for path in pictures:
        found.setdefault(path.relative_to(root).parts[:-1], []).append(path)
    return found

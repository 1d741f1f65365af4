"""Why a folder is no dataset: what was looked for, what was found instead, and the nearest thing to do."""

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from segnet_jax.datasets.archives import IMAGES as IMAGE_ARCHIVE
from segnet_jax.datasets.archives import LABELS as LABEL_ARCHIVE
from segnet_jax.datasets.folder import IMAGES, LABELS
from segnet_jax.datasets.matching import is_litter
from segnet_jax.datasets.name_pairs import PICTURES
from segnet_jax.errors import listed, shown

_MOST_FOLDERS = 2000  # that are looked into
_MOST_BYTES = 200_000  # of an annotation file that are looked at

_EXPORTS = {
    "COCO JSON": (
        (b'"annotations"', b'"images"'),
        "outlines in a JSON file are not read: export masks, such as Roboflow's `Semantic Segmentation Masks`, CVAT's "
        "`Segmentation mask 1.1` or Label Studio's `Brush labels to PNG`",
    ),
    "labelme's JSON": (
        (b'"shapes"', b'"imagePath"'),
        "outlines in JSON files are not read: make masks by labelme's examples/semantic_segmentation/labelme2voc.py",
    ),
    "VGG Image Annotator's JSON": (
        (b'"regions"', b'"shape_attributes"'),
        "outlines in a JSON file are not read: export masks from the labelling tool",
    ),
}
"""Name of a form of annotations -> (words in its files, what to do)."""


def no_data_set(folder: Path, inner: Sequence[Path]) -> str:
    """Say why a folder cannot be trained on.

    Args:
      folder: the folder.
      inner: folders below it that can be.
    """
    if any((folder / archive.filename).exists() for archive in (IMAGE_ARCHIVE, LABEL_ARCHIVE)):
        return (
            f"{folder} holds CamVid's archives, not yet prepared: run "
            f"`python -m segnet_jax.prepare camvid --archives {folder}` and pass --data camvid"
        )
    if inner:
        others = f" (or {listed([str(path) for path in inner[1:]])})" if len(inner) > 1 else ""
        return f"no train.txt in {folder}. Did you mean {inner[0]}{others}?"
    held, hints = _held(folder)
    if (folder / IMAGES).is_dir():
        missing = ", ".join(f"{each}/" for each in LABELS)
        return f"{folder} holds {IMAGES}/, but no {missing}; found {held}{hints}"
    return (
        f"no train.txt and no prepared records in {folder}, and no folders of images and of labels by their names "
        f"(such as images/ and masks/, or train/ and train_labels/): {held}{hints}; "
        "the layouts are told in data/README.md"
    )


def _held(folder: Path) -> tuple[str, str]:
    """What a folder holds: the folders of pictures and the kinds of other files; and what is known of these."""
    pictures: dict[str, Counter[str]] = {}
    others: Counter[str] = Counter()
    forms: dict[str, str] = {}
    for place, folders, files in itertools.islice(os.walk(folder), _MOST_FOLDERS):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        for name in files:
            ending = Path(name).suffix.lower() or "without ending"
            if is_litter(name):
                continue
            if ending in PICTURES:
                pictures.setdefault(os.path.relpath(place, folder), Counter())[ending] += 1
                continue
            others[ending] += 1
            if ending == ".json" and len(forms) < len(_EXPORTS) and others[ending] <= 20:
                form = _form_of(Path(place, name))
                if form:
                    forms.setdefault(form, os.path.relpath(os.path.join(place, name), folder))
    hints = "".join(f"; {shown(file)} is {form}: {_EXPORTS[form][1]}" for form, file in forms.items())
    if not pictures and not others:
        return "it is empty", hints
    number = sum(sum(endings.values()) for endings in pictures.values())
    places = [
        f"{'the folder itself' if place == '.' else shown(place)} "
        f"({', '.join(f'{number} {ending}' for ending, number in ends.items())})"
        for place, ends in pictures.items()
    ]
    told = [f"{number} pictures" + (f" in {listed(places)}" if places else "")]
    told += [f"{count} {shown(ending)}" for ending, count in others.most_common(5)]
    return f"it holds {', '.join(told)}", hints


def _form_of(path: Path) -> str:
    """What form of annotations a JSON file has, by the words at its beginning and end; empty for none known."""
    try:
        if not path.is_file():
            return ""
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES)
            file.seek(max(0, path.stat().st_size - _MOST_BYTES))
            data += file.read(_MOST_BYTES)
    except OSError:
        return ""
    return next((form for form, (found, _) in _EXPORTS.items() if all(word in data for word in found)), "")

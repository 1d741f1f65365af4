"""Describe the files of a folder that is not a dataset, and name the annotation formats among them."""

import itertools
import os
from collections import Counter
from pathlib import Path

from segnet_jax.data.images.suffixes import IMAGE_SUFFIXES
from segnet_jax.data.layouts.names.match_labels import is_litter
from segnet_jax.system.errors import listed, shown

_MAX_FOLDERS = 2000  # searched at most
_MAX_BYTES = 200_000  # read at each end of an annotation file

_EXPORTS = {
    "COCO JSON": (
        (b'"annotations"', b'"images"'),
        "polygons in JSON are not read; export masks, such as Roboflow's `Semantic Segmentation Masks`, CVAT's "
        "`Segmentation mask 1.1` or Label Studio's `Brush labels to PNG`",
    ),
    "labelme's JSON": (
        (b'"shapes"', b'"imagePath"'),
        "polygons in JSON are not read; make masks with labelme's examples/semantic_segmentation/labelme2voc.py",
    ),
    "VGG Image Annotator's JSON": (
        (b'"regions"', b'"shape_attributes"'),
        "polygons in JSON are not read; export masks from the labeling tool",
    ),
}
"""Annotation format -> (byte strings in its files, advice)."""


def describe_contents(folder: Path) -> tuple[str, str]:
    """Return a description of the files below a folder, and advice on known annotation formats."""
    pictures: dict[str, Counter[str]] = {}
    others: Counter[str] = Counter()
    forms: dict[str, str] = {}
    for place, folders, files in itertools.islice(os.walk(folder), _MAX_FOLDERS):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        for name in files:
            ending = Path(name).suffix.lower() or "without extension"
            if is_litter(name):
                continue
            if ending in IMAGE_SUFFIXES:
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
    parts = [f"{number} images" + (f" in {listed(places)}" if places else "")]
    parts += [f"{count} {shown(ending)}" for ending, count in others.most_common(5)]
    return f"it contains {', '.join(parts)}", hints


def _form_of(path: Path) -> str:
    """Return the annotation format of a JSON file, by strings at its start and end, or "" if it is unknown."""
    try:
        if not path.is_file():
            return ""
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES)
            file.seek(max(0, path.stat().st_size - _MAX_BYTES))
            data += file.read(_MAX_BYTES)
    except OSError:
        return ""
    return next((form for form, (found, _) in _EXPORTS.items() if all(word in data for word in found)), "")

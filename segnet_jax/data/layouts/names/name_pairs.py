"""Match label names to image names: a, a_L, a_mask, or any other consistent scheme."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from segnet_jax.data.images.suffixes import IMAGE_SUFFIXES

LABEL_ENDINGS = ("", "_L", "_P")
"""Known suffixes of label names; others are detected."""

VISUAL = frozenset(
    "rgb color colors colour colours colormap colormaps colored coloured colorized human visualization visualisation "
    "visual visualized viz vis".split()
)
"""Words in the names of label visualizations."""

_SECONDARY = VISUAL | {"instance", "instances", "overlay", "overlays", "preview", "blend", "blended", "panoptic"}
"""Words in names of files beside the labels, such as a_mask_overlay.png beside a_mask.png."""

_MAX_AFFIX = 40  # characters of a prefix or suffix


def nfc(text: str) -> str:
    """Return a name in Unicode's composed form; macOS stores decomposed names."""
    return unicodedata.normalize("NFC", text)


def pair_names(images: Sequence[str], labels: Sequence[str], suffix: str = "") -> dict[str, list[str]]:
    """Match labels to images by their names without extension.

    If the known suffixes match fewer than half of the images, the most common prefixes and suffixes around image names,
    names without the affixes common to all (a_sat and a_mask), and names that differ only by case are tried.

    Args:
      images: image names.
      labels: label names.
      suffix: suffix of label names; empty to detect it.

    Returns:
      image -> labels; images without a label are absent.
    """
    if suffix:
        suffix = (
            re.sub(r"\.[A-Za-z]{3,4}$", "", nfc(suffix)) if suffix.lower().endswith(IMAGE_SUFFIXES) else nfc(suffix)
        )
        return _by_keys(images, labels, str, lambda label: label.removesuffix(suffix) if label.endswith(suffix) else "")
    known = {}
    held = set(labels)
    for image in images:
        if mine := [image + ending for ending in LABEL_ENDINGS if image + ending in held]:
            known[image] = mine
    if 2 * len(known) >= len(images):
        return known
    found = [known, *(_by_keys(images, labels, *keys) for keys in _transforms(images, labels))]
    best = max(found, key=lambda each: (_num_clear(each), len(each)))
    return best if 2 * len(best) >= len(images) else known


def _num_clear(found: Mapping[str, Sequence[str]]) -> int:
    return sum(len(mine) == 1 for mine in found.values())


Key = Callable[[str], str]


def _by_keys(images: Iterable[str], labels: Iterable[str], of_image: Key, of_label: Key) -> dict[str, list[str]]:
    by_key: dict[str, list[str]] = {}
    for label in labels:
        if key := of_label(label):
            by_key.setdefault(key, []).append(label)
    return {image: mine for image in images if (mine := by_key.get(of_image(image), []))}


def _transforms(images: Sequence[str], labels: Sequence[str]) -> list[tuple[Key, Key]]:
    """Return candidate pairs of functions that map image and label names to a common key."""
    heads, tails = ((_head(each), _tail(each)) for each in (images, labels))
    ways = _affixes(images, labels, str)
    if heads[1]:  # a_leftImg8bit and a_gtFine_labelIds, a_gtFine_color
        ways += _affixes(images, labels, _stripped("", heads[1]))
    if any((*heads, *tails)):
        ways.append((_stripped(*heads), _stripped(*tails)))
        ways.append((_stripped("", heads[1]), _stripped("", tails[1])))
        ways.append((_stripped(heads[0], ""), _stripped(tails[0], "")))
    return [*ways, (str.casefold, str.casefold)]


def _affixes(images: Sequence[str], labels: Sequence[str], of_image: Key) -> list[tuple[Key, Key]]:
    """Return the keys for the most common suffixes, and the most common prefix, of label names around image names."""
    known = {of_image(image) for image in images}
    behind: Counter[str] = Counter()
    before: Counter[str] = Counter()
    for label in labels:
        for cut in range(1, len(label)):
            if label[:cut] in known and len(label) - cut <= _MAX_AFFIX:
                behind[label[cut:]] += 1
            if label[cut:] in known and cut <= _MAX_AFFIX:
                before[label[:cut]] += 1
    most = behind.most_common(8)
    plain = [each for each in most if not _SECONDARY & set(words(each[0]))] or most  # prefer a_labelIds to a_color
    ways: list[tuple[Key, Key]] = []
    if plain:
        both = [end for end, count in plain if count == plain[0][1]]
        ways.append(
            (of_image, lambda label: next((label.removesuffix(end) for end in both if label.endswith(end)), ""))
        )
    if before:
        start = before.most_common(1)[0][0]
        ways.append((of_image, lambda label: label.removeprefix(start) if label.startswith(start) else ""))
    return ways


def _stripped(head: str, tail: str) -> Key:
    return lambda name: name.removeprefix(head).removesuffix(tail)


def _head(names: Sequence[str]) -> str:
    """Return the common prefix of all names, without trailing digits."""
    return os.path.commonprefix(list(names)).rstrip("0123456789") if len(names) > 1 else ""


def _tail(names: Sequence[str]) -> str:
    return os.path.commonprefix([name[::-1] for name in names])[::-1].lstrip("0123456789") if len(names) > 1 else ""


def words(name: str) -> list[str]:
    """Return the words of a name in lower case: SegmentationClass, val2017 and test_images have two each."""
    parts = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+|[^\x00-\x7f]+", name)
    return [part.lower() for part in parts]

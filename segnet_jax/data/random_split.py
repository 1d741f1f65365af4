"""Dealing the images of a folder to training and validation so that neighbours of a video stay together."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from segnet_jax.system.errors import listed

DEAL_SEED = 0
"""Of the deal; not `--seed`, so that trainings of several seeds are scored on the same images."""

Key = tuple[str, str]
"""An image's name and the sum of its content."""


class Dealt(NamedTuple):
    """A deal and what to say of it."""

    splits: dict[str, list[Key]]
    told: str


def group_of(name: str) -> str:
    """A name without its last number: the video or session that an image comes from."""
    return re.sub(r"[\W_]*[a-z]?\d+(?=\D*$)", "", name, flags=re.IGNORECASE)


def deal(keys: Sequence[Key], share: float) -> Dealt:
    """Deals images to "train" and "val"; the same images always get the same deal, on every machine.

    Names that differ in the number at their end alone, and images of equal content, are kept together. Where no choice
    of such groups comes near the share, a run of names in their order is taken out of the largest group.

    Args:
      keys: each image once.
      share: of the images that are to come to "val".
    """
    groups = _groups(keys)
    wanted = min(max(1, round(share * len(keys))), len(keys) - 1)
    val: list[Key] = []
    for group in sorted(groups, key=_drawn):
        if len(val) + len(groups[group]) <= min(1.25 * wanted, len(keys) - 1):
            val += groups[group]
    how = f"{len(groups)} groups by the beginnings of their names kept together"
    if len(val) < 0.5 * wanted and len(keys) > 1:
        largest = max(groups, key=lambda group: (len(groups[group]), group))
        run = _run(sorted(groups[largest], key=lambda key: _natural(key[0])), wanted)
        val, how = run, f"neighbours by name, from {run[0][0]} to {run[-1][0]}"
    chosen = set(val)
    splits = {"train": [key for key in keys if key not in chosen], "val": [key for key in keys if key in chosen]}
    told = (
        f"note: the folder's images are dealt {len(splits['train'])} to train, {len(splits['val'])} to val ({how}): "
        f"{listed([name for name, _ in splits['val']])}; say otherwise by train.txt and val.txt, or --val-fraction"
    )
    return Dealt(splits, told)


def _groups(keys: Iterable[Key]) -> dict[str, list[Key]]:
    """The images by group; a group that shares a picture with another becomes one with it."""
    groups: dict[str, list[Key]] = {}
    place: dict[str, str] = {}  # of a content or of a name's beginning -> its group
    for key in sorted(keys):  # in whatever order they come
        name, content = key
        mine, other = place.setdefault(f"name {group_of(name)}", group_of(name)), place.get(f"content {content}")
        if other is not None and other != mine:
            groups[other] = groups.get(other, []) + groups.pop(mine, [])
            place = {what: other if group == mine else group for what, group in place.items()}
            mine = other
        place[f"content {content}"] = mine
        groups.setdefault(mine, []).append(key)
    return groups


def _run(keys: Sequence[Key], length: int) -> list[Key]:
    """So many neighbours, from a place that is drawn by the names; never all, and equal pictures stay together."""
    length = min(length, len(keys) - 1)
    start = int(_drawn(" ".join(name for name, _ in keys)), 16) % (len(keys) - length + 1)
    contents = {content for _, content in keys[start : start + length]}
    run = [key for key in keys if key[1] in contents]
    return run if len(run) < len(keys) else list(keys[start : start + length])


def _drawn(text: str) -> str:
    return hashlib.sha256(f"{DEAL_SEED} {text}".encode()).hexdigest()


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key by which a10 comes after a9."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]

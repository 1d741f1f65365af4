"""Random split of a folder's images into training and validation; frames of one video stay in one split."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from segnet_jax.system.errors import listed

SPLIT_SEED = 0
"""Seed of the split; not `--seed`, so that runs with different seeds are scored on the same images."""

Key = tuple[str, str]
"""An image's name and the checksum of its content."""


class RandomSplit(NamedTuple):
    """The images of "train" and "val", and a note for the log."""

    splits: dict[str, list[Key]]
    note: str


def group_of(name: str) -> str:
    """Return a name without its last number: the video or session that the image belongs to."""
    return re.sub(r"[\W_]*[a-z]?\d+(?=\D*$)", "", name, flags=re.IGNORECASE)


def split_randomly(keys: Sequence[Key], val_fraction: float) -> RandomSplit:
    """Split images into "train" and "val", the same way on every machine and for any order of `keys`.

    Images with equal content, or with names that differ only in the last number, form a group that stays in one split.
    If no set of groups comes near `val_fraction`, consecutive images of the largest group are used instead.

    Args:
      keys: keys of the images, without duplicates.
      val_fraction: fraction of the images for "val".
    """
    groups = _groups(keys)
    num_val = min(max(1, round(val_fraction * len(keys))), len(keys) - 1)
    val: list[Key] = []
    for group in sorted(groups, key=_hash):
        if len(val) + len(groups[group]) <= min(1.25 * num_val, len(keys) - 1):
            val += groups[group]
    how = f"in {len(groups)} groups of similar names"
    if len(val) < 0.5 * num_val and len(keys) > 1:
        largest = max(groups, key=lambda group: (len(groups[group]), group))
        run = _run(sorted(groups[largest], key=lambda key: _natural(key[0])), num_val)
        val, how = run, f"consecutive names, from {run[0][0]} to {run[-1][0]}"
    chosen = set(val)
    splits = {"train": [key for key in keys if key not in chosen], "val": [key for key in keys if key in chosen]}
    note = (
        f"note: random split of the folder's images: {len(splits['train'])} train, {len(splits['val'])} val ({how}): "
        f"{listed([name for name, _ in splits['val']])}; to choose other images, write val.txt or use --val-fraction"
    )
    return RandomSplit(splits, note)


def _groups(keys: Iterable[Key]) -> dict[str, list[Key]]:
    """Group images by name, and merge groups that contain the same image."""
    groups: dict[str, list[Key]] = {}
    place: dict[str, str] = {}  # content or name prefix -> its group
    for key in sorted(keys):
        name, content = key
        mine, other = place.setdefault(f"name {group_of(name)}", group_of(name)), place.get(f"content {content}")
        if other is not None and other != mine:
            groups[other] = groups.get(other, []) + groups.pop(mine, [])
            place = {key: other if group == mine else group for key, group in place.items()}
            mine = other
        place[f"content {content}"] = mine
        groups.setdefault(mine, []).append(key)
    return groups


def _run(keys: Sequence[Key], length: int) -> list[Key]:
    """Return about `length` consecutive images, not all, from a pseudo-random start; equal images stay together."""
    length = min(length, len(keys) - 1)
    start = int(_hash(" ".join(name for name, _ in keys)), 16) % (len(keys) - length + 1)
    contents = {content for _, content in keys[start : start + length]}
    run = [key for key in keys if key[1] in contents]
    return run if len(run) < len(keys) else list(keys[start : start + length])


def _hash(text: str) -> str:
    return hashlib.sha256(f"{SPLIT_SEED} {text}".encode()).hexdigest()


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts a10 after a9."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]

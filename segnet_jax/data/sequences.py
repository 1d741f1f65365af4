"""Video sequences by their images' names: neighbours in time across splits, and a sequence left out for validation.

A name such as 0016E5_07959 or Seq05VD_f00930 is a sequence and the number of a frame of its video. Pascal VOC's
photographs have such names too: only of CamVid's drives is it known that numbers are time, and how much.
"""

import dataclasses
import functools
import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from segnet_jax.data.camvid_frames import DRIVES
from segnet_jax.data.dataset import Dataset, Split
from segnet_jax.system.errors import UserError, listed

FRAMES_PER_SECOND = 30
"""Of CamVid's videos, deduced: its lists take every 30th frame, and its paper tells of one image a second."""

SPANS = (1 / 15, 0.5, 1.0, 2.0, 5.0)  # seconds within which neighbours across splits are counted

_MOST_TOLD = 10  # sequences; Cityscapes has hundreds, most of them one image

_NAME = re.compile(r"(?P<sequence>.*[^_-])[_-]f?(?P<frame>\d{1,12})")


def sequence_and_frame(name: str) -> tuple[str, int] | None:
    """What a name says of its image's place in a video; None where it says nothing."""
    found = _NAME.fullmatch(name)
    return (found["sequence"], int(found["frame"])) if found else None


def sequences_of(names: Iterable[str]) -> list[str] | None:
    """The sequence of each name; None where some names tell none."""
    found = [sequence_and_frame(name) for name in names]
    return None if None in found else [sequence for sequence, _ in found]


@dataclass(frozen=True)
class Neighbours:
    """How near the images of two splits come to each other; a gap is in seconds where these are known, else in numbers.

    Attributes:
      splits: the two.
      nearest: of each image of either split with one of the other in its sequence: name -> (name, gap).
      num_pairs: span in seconds -> pairs of images, one of each split, that far apart at most; empty without seconds.
      num_images: span in seconds -> split -> its images with such a neighbour; likewise.
      seams: pairs that follow each other in a sequence, one of each split: (earlier, later, gap), nearest first.
    """

    splits: tuple[str, str]
    nearest: dict[str, tuple[str, float]]
    num_pairs: dict[float, int]
    num_images: dict[float, dict[str, int]]
    seams: list[tuple[str, str, float]]


@dataclass(frozen=True)
class Audit:
    """What the names of a data set tell of its splits.

    Attributes:
      sequences: sequence -> split -> images.
      neighbours: of each two splits that have a sequence in common.
      frames_per_second: of the videos; None where numbers may not be time.
    """

    sequences: dict[str, dict[str, int]]
    neighbours: list[Neighbours]
    frames_per_second: int | None


def audit(splits: Mapping[str, Sequence[str]]) -> Audit | None:
    """Looks for neighbours across splits; None where some names tell no sequence.

    Args:
      splits: split -> its images' names.
    """
    frames: dict[str, dict[str, list[tuple[int, str]]]] = {}  # sequence -> split -> (frame, name), in order
    for split, names in splits.items():
        for name in names:
            if (found := sequence_and_frame(name)) is None:
                return None
            frames.setdefault(found[0], {}).setdefault(split, []).append((found[1], name))
    frames = {sequence: {split: sorted(each) for split, each in found.items()} for sequence, found in frames.items()}
    rate = FRAMES_PER_SECOND if frames.keys() <= DRIVES else None
    told = [_neighbours(one, other, frames, rate) for one, other in combinations(splits, 2)]
    counts = {sequence: {split: len(each) for split, each in frames[sequence].items()} for sequence in sorted(frames)}
    return Audit(counts, [each for each in told if each is not None], rate)


def _neighbours(one: str, other: str, frames, rate: int | None) -> Neighbours | None:
    both = [(found[one], found[other]) for found in frames.values() if one in found and other in found]
    if not both:
        return None
    nearest, seams = {}, []
    spans = SPANS if rate else ()
    num_pairs = dict.fromkeys(spans, 0)
    for here, there in both:
        for mine, others in ((here, there), (there, here)):
            numbers = [frame for frame, _ in others]
            for frame, name in mine:
                place = bisect_left(numbers, frame)
                near = min(others[max(place - 1, 0) : place + 1], key=lambda each, frame=frame: abs(each[0] - frame))
                nearest[name] = (near[1], _gap(abs(near[0] - frame), rate))
        if spans:  # not for a folder of photographs: one sequence, of which the table of all gaps may fill the memory
            gaps = np.abs(np.subtract.outer([frame for frame, _ in here], [frame for frame, _ in there]))
            for span in spans:
                num_pairs[span] += int((gaps <= span * rate + 1e-6).sum())
        merged = sorted([(*each, one) for each in here] + [(*each, other) for each in there])
        follow = [pair for pair in zip(merged, merged[1:], strict=False) if pair[0][2] != pair[1][2]]
        seams += [(a[1], b[1], _gap(b[0] - a[0], rate)) for a, b in follow]
    of_split = {name: split for split, place in ((one, 0), (other, 1)) for pair in both for _, name in pair[place]}
    num_images = {
        span: {
            split: sum(of_split[name] == split and seconds <= span + 1e-6 for name, (_, seconds) in nearest.items())
            for split in (one, other)
        }
        for span in spans
    }
    return Neighbours((one, other), nearest, num_pairs, num_images, sorted(seams, key=lambda seam: seam[2]))


def _gap(numbers: int, rate: int | None) -> float:
    return numbers / rate if rate else numbers


def in_words(found: Audit) -> list[str]:
    """An audit, a line for each thing to know; of many sequences those with the most images."""
    rate = found.frames_per_second
    by_size = sorted(found.sequences.items(), key=lambda item: -sum(item[1].values()))
    lines = [
        f"sequence {name}: {', '.join(f'{count} {split}' for split, count in counts.items())}"
        for name, counts in by_size[:_MOST_TOLD]
    ]
    if len(by_size) > _MOST_TOLD:
        lines.append(f"and {len(by_size) - _MOST_TOLD} more sequences; --json FILE lists all")
    for each in found.neighbours:
        one, other = each.splits
        shown = ", ".join(f"{a} and {b} {_seconds(gap) if rate else f'{gap} apart'}" for a, b, gap in each.seams[:3])
        more = f" and {len(each.seams) - 3} more" if len(each.seams) > 3 else ""
        how = f"at {rate} frames a second" if rate else "by the numbers in their names"
        lines.append(f"seams    {one} to {other}, {how}: {shown}{more}")
        if near := [span for span, number in each.num_pairs.items() if number]:
            counts = [f"{each.num_images[span][one]} and {each.num_images[span][other]}" for span in near[:2]]
            lines.append(
                f"note: {counts[0]} images of {one} and {other} have a neighbour in the other within "
                f"{_seconds(near[0])}{f', {counts[1]} within {_seconds(near[1])}' if len(near) > 1 else ''}: a score "
                "on such neighbours flatters"
            )
    return lines


def as_json(found: Audit) -> dict:
    """An audit as JSON; gaps are called "seconds" or "numbers"."""
    told, unit = [], "seconds" if found.frames_per_second else "numbers"
    for each in found.neighbours:
        within = {
            _seconds(span): {"pairs": pairs, "images": each.num_images[span]} for span, pairs in each.num_pairs.items()
        }
        seams = [{"earlier": a, "later": b, unit: gap} for a, b, gap in each.seams]
        nearest = {name: {"name": other, unit: gap} for name, (other, gap) in each.nearest.items()}
        told.append({"splits": each.splits, "within": within, "seams": seams, "nearest": nearest})
    return {"frames_per_second": found.frames_per_second, "sequences": found.sequences, "neighbours": told}


def _seconds(span: float) -> str:
    return "1/15 s" if abs(span - 1 / 15) < 1e-6 else f"{span:.2g} s" if span < 10 else f"{span:.0f} s"


def leave_out(dataset: Dataset, sequence: str, num_train: int = 0) -> Dataset:
    """Makes a sequence the validation images, and all other images, of all splits, the training images.

    With `num_train` the training images are the first so many frames of the sequence instead, and its other frames are
    validated on: a network that was trained without the sequence is fine-tuned to it. The first ones, not every n-th:
    one seam alone has neighbors in time on both sides, where evenly spaced frames would put one beside each scored
    frame.

    Args:
      dataset: whose names tell sequences.
      sequence: to be left out of the training.
      num_train: 0, or the number of frames of the sequence to train on, in the order of their numbers.

    Raises:
      UserError: the names tell no sequences, this one is none of them, the only one or too short, or a name is there
        twice.
    """
    places = [(split, index) for split in dataset.splits.values() for index in range(len(split))]
    names = [split.names[index] for split, index in places]
    found = sequences_of(names)
    if found is None:
        first = next(name for name in names if sequence_and_frame(name) is None)
        what = f"--split-rule leave-out needs names such as 0016E5_07959, a sequence and a frame; {first} is none"
        raise UserError(what)
    known = sorted(set(found))
    if sequence not in known:
        given = f"no sequence {sequence}" if sequence else "--split-rule leave-out needs --leave-out SEQUENCE"
        raise UserError(f"{given}; {dataset.name} has {listed(known)}")
    if len(known) == 1 and not num_train:
        raise UserError(f"{sequence} is the only sequence of {dataset.name}: nothing would be left to train on")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"the same name in two splits, which leave-out would put together: {listed(twice)}")
    source = ",".join(split.fingerprint for split in dataset.splits.values())
    files = {name: digest for split in dataset.splits.values() for name, digest in split.files.items()}
    splits, of_sequence = {}, [place for place, each in enumerate(found) if each == sequence]
    others = [place for place, each in enumerate(found) if each != sequence]
    if num_train >= len(of_sequence):
        raise UserError(
            f"--leave-out-train {num_train} leaves none of the {len(of_sequence)} frames of {sequence} to validate on: "
            f"give at most {len(of_sequence) - 1}"
        )
    in_time = sorted(of_sequence, key=lambda place: sequence_and_frame(names[place])[1])
    parts = (in_time[:num_train], in_time[num_train:]) if num_train else (others, of_sequence)
    for split, chosen in zip(("train", "val"), parts, strict=True):
        chosen_names = tuple(names[place] for place in chosen)
        digest = hashlib.sha256("\n".join((source, *chosen_names)).encode()).hexdigest()
        read = functools.partial(_read, [places[place] for place in chosen])
        splits[split] = Split(chosen_names, read, digest, files)
    name = f"{dataset.name}-{f'first-{num_train}-of' if num_train else 'without'}-{sequence}"
    return dataclasses.replace(dataset, name=name, splits=splits)


def _read(places: Sequence[tuple[Split, int]], index: int) -> tuple[np.ndarray, np.ndarray]:
    split, place = places[index]
    return split.read(place)

"""Video sequences, read from image names: temporal neighbors across splits, and leave-one-sequence-out splits.

A name such as 0016E5_07959 consists of a sequence and a frame number. Frame numbers are converted to time for CamVid's
videos only, because datasets such as Pascal VOC have similar names.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from segnet_jax.data.camvid_frames import DRIVES
from segnet_jax.data.dataset import Dataset, regroup
from segnet_jax.system.errors import UserError, listed

FRAMES_PER_SECOND = 30
"""Frame rate of CamVid's videos, derived from the lists (every 30th frame) and the paper (one image per second)."""

SPANS = (1 / 15, 0.5, 1.0, 2.0, 5.0)  # seconds within which neighbors across splits are counted

_MAX_LISTED = 10  # sequences; Cityscapes has hundreds, most with one image

_NAME = re.compile(r"(?P<sequence>.*[^_-])[_-]f?(?P<frame>\d{1,12})")


def sequence_and_frame(name: str) -> tuple[str, int] | None:
    """Return the sequence and frame number in a name, or None."""
    found = _NAME.fullmatch(name)
    return (found["sequence"], int(found["frame"])) if found else None


def sequences_of(names: Iterable[str]) -> list[str] | None:
    """Return the sequence of each name, or None if any name has none."""
    found = [sequence_and_frame(name) for name in names]
    return None if None in found else [sequence for sequence, _ in found]


@dataclass(frozen=True)
class Neighbors:
    """Gaps between the images of two splits, in seconds if the frame rate is known, else in frame numbers.

    Attributes:
      splits: the two splits.
      nearest: image -> (nearest image of the other split in the same sequence, gap).
      num_pairs: span in seconds -> pairs across the splits at most that far apart; empty without a frame rate.
      num_images: span in seconds -> split -> images with such a neighbor; empty without a frame rate.
      seams: consecutive images of a sequence in different splits: (earlier, later, gap), nearest first.
    """

    splits: tuple[str, str]
    nearest: dict[str, tuple[str, float]]
    num_pairs: dict[float, int]
    num_images: dict[float, dict[str, int]]
    seams: list[tuple[str, str, float]]


@dataclass(frozen=True)
class Audit:
    """Sequences of a dataset and their neighbors across splits.

    Attributes:
      sequences: sequence -> split -> number of images.
      neighbors: one item for each pair of splits with a common sequence.
      frames_per_second: frame rate; None if frame numbers may not be time.
    """

    sequences: dict[str, dict[str, int]]
    neighbors: list[Neighbors]
    frames_per_second: int | None


def audit(splits: Mapping[str, Sequence[str]]) -> Audit | None:
    """Find temporal neighbors across splits (split -> image names), or return None if a name has no sequence."""
    frames: dict[str, dict[str, list[tuple[int, str]]]] = {}  # sequence -> split -> (frame, name), in order
    for split, names in splits.items():
        for name in names:
            if (found := sequence_and_frame(name)) is None:
                return None
            frames.setdefault(found[0], {}).setdefault(split, []).append((found[1], name))
    frames = {sequence: {split: sorted(each) for split, each in found.items()} for sequence, found in frames.items()}
    rate = FRAMES_PER_SECOND if frames.keys() <= DRIVES else None
    neighbors = [_neighbors(one, other, frames, rate) for one, other in combinations(splits, 2)]
    counts = {sequence: {split: len(each) for split, each in frames[sequence].items()} for sequence in sorted(frames)}
    return Audit(counts, [each for each in neighbors if each is not None], rate)


def _neighbors(one: str, other: str, frames, rate: int | None) -> Neighbors | None:
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
        if spans:  # for a folder of photographs, named like one long sequence, this table could exhaust memory
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
    return Neighbors((one, other), nearest, num_pairs, num_images, sorted(seams, key=lambda seam: seam[2]))


def _gap(numbers: int, rate: int | None) -> float:
    return numbers / rate if rate else numbers


def describe_audit(found: Audit) -> list[str]:
    """Format an audit as lines of text; only the largest sequences are listed."""
    rate = found.frames_per_second
    by_size = sorted(found.sequences.items(), key=lambda item: -sum(item[1].values()))
    lines = [
        f"sequence {name}: {', '.join(f'{count} {split}' for split, count in counts.items())}"
        for name, counts in by_size[:_MAX_LISTED]
    ]
    if len(by_size) > _MAX_LISTED:
        lines.append(f"and {len(by_size) - _MAX_LISTED} more sequences; --json FILE lists all")
    for each in found.neighbors:
        one, other = each.splits
        shown = ", ".join(f"{a} and {b} {_seconds(gap) if rate else f'{gap} apart'}" for a, b, gap in each.seams[:3])
        more = f" and {len(each.seams) - 3} more" if len(each.seams) > 3 else ""
        how = f"at {rate} frames a second" if rate else "by the numbers in their names"
        lines.append(f"seams    {one} to {other}, {how}: {shown}{more}")
        if near := [span for span, number in each.num_pairs.items() if number]:
            counts = [f"{each.num_images[span][one]} and {each.num_images[span][other]}" for span in near[:2]]
            lines.append(
                f"note: {counts[0]} images of {one} and {other} have a neighbor in the other split within "
                f"{_seconds(near[0])}{f', {counts[1]} within {_seconds(near[1])}' if len(near) > 1 else ''}: scores "
                "on such neighbors are too high"
            )
    return lines


def as_json(found: Audit) -> dict:
    """Convert an audit to a dict for JSON; gaps have the key "seconds" or "numbers"."""
    pairs, unit = [], "seconds" if found.frames_per_second else "numbers"
    for each in found.neighbors:
        within = {
            _seconds(span): {"pairs": count, "images": each.num_images[span]} for span, count in each.num_pairs.items()
        }
        seams = [{"earlier": a, "later": b, unit: gap} for a, b, gap in each.seams]
        nearest = {name: {"name": other, unit: gap} for name, (other, gap) in each.nearest.items()}
        pairs.append({"splits": each.splits, "within": within, "seams": seams, "nearest": nearest})
    return {"frames_per_second": found.frames_per_second, "sequences": found.sequences, "neighbors": pairs}


def _seconds(span: float) -> str:
    return "1/15 s" if abs(span - 1 / 15) < 1e-6 else f"{span:.2g} s" if span < 10 else f"{span:.0f} s"


def leave_out(dataset: Dataset, sequence: str, num_train: int = 0) -> Dataset:
    """Return a dataset that validates on one sequence and trains on all others, from every split.

    With `num_train`, it trains on that many first frames of the sequence and validates on the rest, for fine-tuning.
    Unlike every n-th frame, the first frames have close neighbors in validation at a single seam only.

    Raises:
      UserError: If a name has no sequence or occurs twice, or the sequence is unknown, the only one, or too short.
    """
    places = [(split, index) for split in dataset.splits.values() for index in range(len(split))]
    names = [split.names[index] for split, index in places]
    found = sequences_of(names)
    if found is None:
        first = next(name for name in names if sequence_and_frame(name) is None)
        message = f"--split-rule leave-out needs names such as 0016E5_07959, a sequence and a frame, but got {first}"
        raise UserError(message)
    known = sorted(set(found))
    if sequence not in known:
        given = f"unknown sequence {sequence}" if sequence else "--split-rule leave-out needs --leave-out SEQUENCE"
        raise UserError(f"{given}; {dataset.name} has {listed(known)}")
    if len(known) == 1 and not num_train:
        raise UserError(f"{sequence} is the only sequence of {dataset.name}, so nothing would be left to train on")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"--split-rule leave-out needs unique names, but two splits share {listed(twice)}")
    of_sequence = [place for place, each in enumerate(found) if each == sequence]
    others = [place for place, each in enumerate(found) if each != sequence]
    if num_train >= len(of_sequence):
        raise UserError(
            f"--leave-out-train {num_train} leaves no frame to validate on, as {sequence} has {len(of_sequence)}: "
            f"pass at most {len(of_sequence) - 1}"
        )
    in_time = sorted(of_sequence, key=lambda place: sequence_and_frame(names[place])[1])
    parts = (in_time[:num_train], in_time[num_train:]) if num_train else (others, of_sequence)
    train, val = ([places[place] for place in chosen] for chosen in parts)
    name = f"{dataset.name}-{f'first-{num_train}-of' if num_train else 'without'}-{sequence}"
    return regroup(dataset, name, {"train": train, "val": val}, list(dataset.splits.values()))

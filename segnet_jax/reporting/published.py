"""What others published on CamVid, and how far a score of ours may be set beside it.

The rows stand in `published.toml`, each with its source. Three protocols are called "SegNet on CamVid", and their
numbers do not compare: so each row is told with whether split, number of images, size and test set are ours too.
"""

import functools
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any, TextIO

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segnet_jax.metrics.bootstrap import Interval
from segnet_jax.reporting.tables import percent

SCORES = {"global_accuracy": "G", "mean_accuracy": "C", "miou": "mIoU", "boundary_f1": "BF"}
MARKS = ("V", "S", "V, user", "C")
"""Read in the source named; quoted by others; a user's report; our count from published files."""


@dataclass(frozen=True)
class Row:
    """A published result; what was not stated in what was read is None, or says so.

    Attributes:
      name: of the network, and of whose it is.
      mark: one of MARKS.
      source: where it stands.
      network: its kind.
      pretrained: the first weights of the encoder.
      data: what it was trained and scored on.
      split: "tutorial", "matlab", or in words.
      scores: name -> percent, of SCORES, as printed.
      line: the beginning of its line in the notes that it is held against.
      quoted_by: who told it, of mark S.
      url: of the source.
      remark: what to know of it.
      train_images: trained on.
      test_images: scored on.
      image_size: height and width.
    """

    name: str
    mark: str
    source: str
    network: str
    pretrained: str
    data: str
    split: str
    scores: Mapping[str, float]
    line: str
    quoted_by: str = ""
    url: str = ""
    remark: str = ""
    train_images: int | None = None
    test_images: int | None = None
    image_size: tuple[int, int] | None = None

    def __post_init__(self):
        """Refuses a row that may not be shown; a mistake of ours, not of a user.

        Raises:
          ValueError: for an unknown mark or score, or a quotation that does not say whose.
        """
        if self.mark not in MARKS or not self.scores.keys() <= SCORES.keys() or not self.scores:
            raise ValueError(f"{self.name} has mark {self.mark!r} and scores {list(self.scores)}: not to be shown")
        if (self.mark == "S") != bool(self.quoted_by):
            raise ValueError(f"{self.name}: mark S and quoted_by need each other")

    @property
    def told_by(self) -> str:
        """The source in words, with what weight it has."""
        how = {"S": f", quoted by {self.quoted_by}", "V, user": ", a user's report", "C": ", our count"}
        return self.source + how.get(self.mark, "")


@functools.cache
def read_rows() -> tuple[Row, ...]:
    """The published results, as they ship with the package."""
    text = (resources.files(__package__) / "published.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)["row"]
    return tuple(Row(**row | {"image_size": tuple(row["image_size"]) if "image_size" in row else None}) for row in rows)


@dataclass(frozen=True)
class Ours:
    """A result of ours: of a run, or the mean of runs that differ by their seed alone.

    Attributes:
      name: of the runs.
      seeds: of each run.
      protocol: the recipe's name, or "custom".
      dataset: such as "camvid-tutorial".
      split: that was scored.
      num_images: that were scored.
      train_images: trained on; None where that is not known.
      image_size: height and width; likewise.
      pretrained: the first weights of the encoder.
      scores: name -> mean over the runs, fractions.
      interval: score -> bootstrap interval over images, of that mean.
      each: score -> that of each run.
    """

    name: str
    seeds: tuple[int, ...]
    protocol: str
    dataset: str
    split: str
    num_images: int | None
    train_images: int | None
    image_size: tuple[int, int] | None
    pretrained: str
    scores: Mapping[str, float]
    interval: Mapping[str, Interval] = field(default_factory=dict)
    each: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """Its mIoU in words."""
        low, high = self.interval.get("miou", (None, None))
        spread = f", 95 % over images {percent(low)} to {percent(high)}" if low is not None else ", no interval"
        count = f"mean of {len(self.seeds)} seeds" if len(self.seeds) > 1 else "1 seed"
        scored = f"{self.num_images or 'an unknown number of'} {self.split} images of {self.dataset}"
        return f"{self.name}: mIoU {percent(self.scores.get('miou'))} ({count}{spread}) on {scored}"


def disagreements(row: Row, ours: Ours) -> dict[str, str]:
    """Why a published result and one of ours are not of the same protocol; nothing where they are.

    What a source does not state is not taken to agree.

    Returns:
      "split", "images", "size" or "test set" -> the reason in words, of each that does not agree.
    """
    reasons = {}
    if row.data != "CamVid":
        reasons["split"] = f"its data are {row.data}"
    elif row.split == "not stated":
        reasons["split"] = "its split is not stated"
    elif f"camvid-{row.split}" != ours.dataset:
        reasons["split"] = f"its split is {row.split}, ours {ours.dataset}"
    if row.train_images is None:
        reasons["images"] = "its number of training images is not stated"
    elif row.train_images != ours.train_images:
        reasons["images"] = f"{row.train_images:,} training images, ours {_number(ours.train_images)}"
    if row.image_size is None:
        reasons["size"] = "its image size is not stated"
    elif row.image_size != ours.image_size:
        reasons["size"] = f"images of {_size(row.image_size)}, ours {_size(ours.image_size)}"
    if row.test_images is None:
        reasons["test set"] = "its number of test images is not stated"
    elif (ours.split, ours.num_images) != ("test", row.test_images):
        scored = f"{_number(ours.num_images)} {ours.split} images"
        reasons["test set"] = f"scored on {row.test_images} test images, ours {scored}"
    return reasons


def beside(all_ours: Sequence[Ours]) -> dict[str, Any]:
    """Sets results of ours beside each published one, as data."""
    rows = []
    for row in read_rows():
        told = {name: value for name, value in asdict(row).items() if name != "line"}
        compared = []
        for ours in all_ours:
            reasons = disagreements(row, ours)
            why = "; ".join(reasons.values()) or "split, number of images, size and test set agree"
            gaps = {name: 100 * ours.scores[name] - value for name, value in row.scores.items() if name in ours.scores}
            told_of = {"name": ours.name, "same_protocol": not reasons, "differs_in": list(reasons), "why": why}
            compared.append(told_of | {"difference": gaps})
        rows.append(told | {"told_by": row.told_by, "ours": compared})
    return {"ours": [asdict(ours) | {"told": ours.told} for ours in all_ours], "published": rows}


def print_published(told: Mapping[str, Any], file: TextIO | None = None) -> None:
    """Prints what `beside` tells, to standard output unless told otherwise."""
    console = Console(file=file or sys.stdout, highlight=False)
    for place, ours in enumerate(told["ours"], start=1):
        console.print(Text(f"({place}) {ours['told']}"))
    table = Table(box=rich.box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("published", overflow="fold", ratio=3, min_width=12)
    for heading in SCORES.values():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("ours, mIoU; same protocol?", overflow="fold", ratio=2, min_width=16)
    for row in told["published"]:
        cells = [_cell(row["scores"].get(name)) for name in SCORES]
        source = row["told_by"] + (f"; {row['remark']}" if row["remark"] else "")
        name = Text(f"{row['name']}\n").append(source, style="dim")
        verdicts = "\n".join(_short_verdict(place, each) for place, each in enumerate(row["ours"], start=1))
        table.add_row(name, *cells, Text(verdicts), end_section=True)
    console.print(table)


def verdict(compared: Mapping[str, Any]) -> str:
    """In words, how a result of ours stands beside a published one."""
    gap = compared["difference"].get("miou")
    beside_it = f"{gap:+.1f}, " if gap is not None else ""
    return f"{beside_it}{'yes' if compared['same_protocol'] else 'no'}: {compared['why']}"


def _short_verdict(place: int, compared: Mapping[str, Any]) -> str:
    gap = compared["difference"].get("miou")
    differs = f"no: other {', '.join(compared['differs_in'])}" if compared["differs_in"] else "yes"
    return f"({place}) {f'{gap:+.1f}, ' if gap is not None else ''}{differs}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _size(size: tuple[int, int] | None) -> str:
    return f"{size[0]}x{size[1]}" if size else "unknown"

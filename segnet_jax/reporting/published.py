"""Compare our scores with the published results on CamVid in `published.toml`.

Three incompatible protocols are called "SegNet on CamVid", so each comparison states whether the protocols agree.
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

from segnet_jax.metrics.bootstrap import LEVEL_TEXT, Interval
from segnet_jax.metrics.table import METRICS, percent
from segnet_jax.system.console import cell

MARKS = ("V", "S", "V, user", "C")
"""V: read in the source; S: quoted by others; "V, user": reported by a user; C: counted in published files."""


def score_columns() -> dict[str, str]:
    """Return the column headings by key: the metrics with a symbol, and boundary F1."""
    return {key: metric.symbol for key, metric in METRICS.items() if metric.symbol} | {"boundary_f1": "BF"}


@dataclass(frozen=True)
class PublishedResult:
    """A published result; None or "not stated" if the source does not state a value.

    Attributes:
      name: network, and author if it is a reimplementation.
      mark: one of MARKS.
      source: publication or repository.
      network: architecture.
      pretrained: initial weights of the encoder.
      data: dataset of training and evaluation.
      split: "tutorial", "matlab", "trainval", or a description.
      scores: key of `score_columns` -> percent, as printed.
      quoted_by: publication that quotes the result, for mark S.
      url: URL of the source.
      remark: caveats.
      train_images: number of training images.
      test_images: number of evaluated images.
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
    quoted_by: str = ""
    url: str = ""
    remark: str = ""
    train_images: int | None = None
    test_images: int | None = None
    image_size: tuple[int, int] | None = None

    def __post_init__(self):
        """Raise ValueError if the mark or the scores are invalid, or `quoted_by` does not match the mark."""
        if self.mark not in MARKS:
            raise ValueError(f"{self.name}: unknown mark {self.mark!r}; use one of {', '.join(MARKS)}")
        if not self.scores or not self.scores.keys() <= score_columns().keys():
            raise ValueError(f"{self.name}: scores are {list(self.scores)}; use some of {', '.join(score_columns())}")
        if (self.mark == "S") != bool(self.quoted_by):
            raise ValueError(f"{self.name}: quoted_by is required with mark S and not allowed with others")

    @property
    def citation(self) -> str:
        """The source, and how the result was obtained from it."""
        notes = {"S": f", quoted by {self.quoted_by}", "V, user": ", reported by a user", "C": ", our count"}
        return self.source + notes.get(self.mark, "")


@functools.cache
def read_published() -> tuple[PublishedResult, ...]:
    """Read `published.toml`."""
    text = (resources.files(__package__) / "published.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)["row"]
    sizes = ({"image_size": tuple(row["image_size"]) if "image_size" in row else None} for row in rows)
    return tuple(PublishedResult(**row | size) for row, size in zip(rows, sizes, strict=True))


@dataclass(frozen=True)
class SeedAverage:
    """The scores of a run, or the means over runs that differ only in their seed.

    Attributes:
      name: run names.
      seeds: seed of each run.
      protocol: protocol name, or "custom".
      dataset: such as "camvid-tutorial".
      split: the evaluated split.
      num_images: number of evaluated images; None if unknown.
      train_images: number of training images; None if unknown.
      image_size: height and width; None if unknown.
      pretrained: initial weights of the encoder.
      scores: key -> mean over the runs, as fractions.
      interval: key -> bootstrap interval of that mean over images.
      each: key -> value of each run.
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
    def summary(self) -> str:
        """One line: mIoU, seeds, interval and evaluated images."""
        low, high = self.interval.get("miou", (None, None))
        ends = "no interval" if low is None else f"{LEVEL_TEXT} interval over images {percent(low)} to {percent(high)}"
        seeds = f"mean of {len(self.seeds)} seeds" if len(self.seeds) > 1 else "1 seed"
        images = f"{self.num_images or 'an unknown number of'} {self.split} images of {self.dataset}"
        return f"{self.name}: mIoU {percent(self.scores.get('miou'))} ({seeds}, {ends}) on {images}"


def protocol_differences(published: PublishedResult, ours: SeedAverage) -> dict[str, str]:
    """Return the differences between the protocols of two results; missing statements count as differences.

    Returns:
      Any of "split", "images", "size" and "test set" -> reason; empty if the protocols agree.
    """
    reasons = {}
    if published.data != "CamVid":
        reasons["split"] = f"the dataset is {published.data}"
    elif published.split == "not stated":
        reasons["split"] = "the split is not stated"
    elif f"camvid-{published.split}" != ours.dataset:
        reasons["split"] = f"the split is {published.split}, ours is {ours.dataset}"
    if published.train_images is None:
        reasons["images"] = "the number of training images is not stated"
    elif published.train_images != ours.train_images:
        reasons["images"] = f"{published.train_images:,} training images, ours {_number(ours.train_images)}"
    if published.image_size is None:
        reasons["size"] = "the image size is not stated"
    elif published.image_size != ours.image_size:
        reasons["size"] = f"image size {_size(published.image_size)}, ours {_size(ours.image_size)}"
    if published.test_images is None:
        reasons["test set"] = "the number of test images is not stated"
    elif (ours.split, ours.num_images) != ("test", published.test_images):
        evaluated = f"{_number(ours.num_images)} {ours.split} images"
        reasons["test set"] = f"evaluated on {published.test_images} test images, ours on {evaluated}"
    return reasons


def compare_with_published(results: Sequence[SeedAverage]) -> dict[str, Any]:
    """Compare our results with each published one.

    Returns:
      A JSON-compatible dict: "ours" lists our results, each with a "summary"; "published" lists the published results,
      each with a "citation" and a list "ours" of comparisons. A comparison has "same_protocol", "differs_in", "why" and
      "difference" (percentage points).
    """
    rows = []
    for published in read_published():
        compared = []
        for ours in results:
            reasons = protocol_differences(published, ours)
            compared.append(
                {
                    "name": ours.name,
                    "same_protocol": not reasons,
                    "differs_in": list(reasons),
                    "why": "; ".join(reasons.values()) or "split, number of images, size and test set agree",
                    "difference": {
                        key: 100 * ours.scores[key] - value
                        for key, value in published.scores.items()
                        if key in ours.scores
                    },
                }
            )
        rows.append(asdict(published) | {"citation": published.citation, "ours": compared})
    return {"ours": [asdict(ours) | {"summary": ours.summary} for ours in results], "published": rows}


def print_published(comparison: Mapping[str, Any], file: TextIO | None = None) -> None:
    """Print the result of `compare_with_published` as a table, by default to standard output."""
    console = Console(file=file or sys.stdout, highlight=False)
    for number, ours in enumerate(comparison["ours"], start=1):
        console.print(cell(f"({number}) {ours['summary']}"))
    columns = score_columns()
    table = Table(box=rich.box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("published", overflow="fold", ratio=3, min_width=12)
    for heading in columns.values():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("our mIoU minus theirs; same protocol?", overflow="fold", ratio=2, min_width=16)
    for row in comparison["published"]:
        cells = [_cell(row["scores"].get(key)) for key in columns]
        source = row["citation"] + (f"; {row['remark']}" if row["remark"] else "")
        name = Text(f"{row['name']}\n").append(source, style="dim")
        verdicts = "\n".join(_short_verdict(number, each) for number, each in enumerate(row["ours"], start=1))
        table.add_row(name, *cells, cell(verdicts), end_section=True)
    console.print(table)


def verdict(compared: Mapping[str, Any]) -> str:
    """Format a comparison: the difference in mIoU, whether the protocols agree, and the reason."""
    return f"{_gap(compared)}{'yes' if compared['same_protocol'] else 'no'}: {compared['why']}"


def _short_verdict(number: int, compared: Mapping[str, Any]) -> str:
    differs = f"no: different {', '.join(compared['differs_in'])}" if compared["differs_in"] else "yes"
    return f"({number}) {_gap(compared)}{differs}"


def _gap(compared: Mapping[str, Any]) -> str:
    gap = compared["difference"].get("miou")
    return "" if gap is None else f"{gap:+.1f}, "


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _size(size: tuple[int, int] | None) -> str:
    return f"{size[0]}x{size[1]}" if size else "unknown"

"""Curves as the paths of an SVG, so that a page draws them sharp, in its own colours, at any width."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segnet_jax.reporting.page.record import Record, number
from segnet_jax.reporting.training_plot import loss_top, smoothed, thinned

WIDTH, HEIGHT = 400, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 390, 10, 206  # of the plotted area
_MOST_POINTS = 400
_MOST_DOTS = 30


@dataclass(frozen=True)
class Curve:
    """A curve that is drawn.

    Attributes:
      name: for the key.
      look: the CSS class of its colour and stroke.
      path: the SVG path.
      dots: where its points are marked: (x, y).
    """

    name: str
    look: str
    path: str
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Chart:
    """A chart that is drawn.

    Attributes:
      title: what it shows, with its unit.
      told: the same for somebody who does not see it.
      curves: from the back to the front.
      x_ticks: (x, label).
      y_ticks: (y, label).
    """

    title: str
    told: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def training_charts(record: Record) -> list[Chart]:
    """Accuracy and loss over the epochs; without any row there is nothing to draw."""
    if not record.train and not record.val:
        return []
    train, val = record.train, record.val
    end = max(_epochs(record.train[-1:] + record.val[-1:]), default=1.0) or 1.0
    accuracy, loss = 100 * _column(train, "accuracy"), _column(train, "loss")
    scored, found, val_loss = 100 * _column(val, "global_accuracy"), 100 * _column(val, "miou"), _column(val, "loss")
    split = "validation" if record.about.get("split", "val") == "val" else "test"
    top = loss_top(smoothed(loss), loss, val_loss) if np.isfinite([*loss, *val_loss]).any() else 1.0
    upper = [
        ("each training step", "pale", train, accuracy),
        ("training, smoothed", "train", train, smoothed(accuracy)),
        (f"{split} accuracy", "val", val, scored),
        (f"{split} mIoU", "miou", val, found),
    ]
    lower = [
        ("each training step", "pale", train, loss),
        ("training, smoothed", "train", train, smoothed(loss)),
        (split, "val", val, val_loss),
    ]
    told = f"Training accuracy, {split} accuracy and mIoU over {end:.4g} epochs. {_last('mIoU', found, ' %')}"
    return [
        _chart("Accuracy, %", told, upper, end, 100.0),
        _chart("Loss", f"Training and {split} loss over {end:.4g} epochs. {_last('Loss', val_loss)}", lower, end, top),
    ]


def comparing_charts(records: Sequence[Record], names: Sequence[str]) -> list[Chart]:
    """The mIoU and the smoothed training loss of several runs over their epochs."""
    end = max((epoch for each in records for epoch in _epochs(each.train[-1:] + each.val[-1:])), default=0.0)
    if not end:
        return []
    mious, losses, tops = [], [], [1e-6]
    for place, (name, record) in enumerate(zip(names, records, strict=True)):
        look = f"run{place}"
        mious.append((name, look, record.val, 100 * _column(record.val, "miou")))
        loss = smoothed(_column(record.train, "loss"))
        losses.append((name, look, record.train, loss))
        if np.isfinite(loss).any():
            tops.append(1.05 * float(np.nanpercentile(loss, 99)))
    return [
        _chart("mIoU, %", f"The mIoU of {len(records)} runs over their epochs.", mious, end, 100.0),
        _chart("Training loss, smoothed", f"The training loss of {len(records)} runs.", losses, end, max(tops)),
    ]


def _chart(title: str, told: str, curves: Sequence[tuple[str, str, list, np.ndarray]], end: float, top: float) -> Chart:
    def x(epoch: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * epoch / end, 1)

    def y(value: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * min(max(value / top, 0), 1), 1)

    drawn = []
    for name, look, rows, values in curves:
        some = thinned(values, _MOST_POINTS)
        places = zip(_epochs([rows[i] for i in some]), values[some], strict=True)
        points = [(x(epoch), y(value)) if math.isfinite(value) else None for epoch, value in places]
        known = tuple(point for point in points if point)
        if known:
            marked = known if look not in ("pale", "train") and len(known) <= _MOST_DOTS or len(known) == 1 else ()
            drawn.append(Curve(name, look, _path(points), marked))
    x_ticks = tuple((x(tick), f"{tick:g}") for tick in ticks(end, 6))
    return Chart(title, told, tuple(drawn), x_ticks, tuple((y(tick), f"{tick:g}") for tick in ticks(top, 5)))


def ticks(end: float, most: int) -> list[float]:
    """Round numbers from 0 to the end, at most so many steps apart."""
    power = 10.0 ** math.floor(math.log10(end / most))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if end / (power * factor) <= most)
    return [round(place * step, 10) for place in range(math.floor(end / step * (1 + 1e-9)) + 1)]


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """A line through the points, broken where there is none."""
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        parts.append(f"{pen}{point[0]:g} {point[1]:g}")
        pen = "L"
    return "".join(parts)


def _epochs(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Of each row; its step where it tells none."""
    return [max(number(row.get("epoch")) or 0.0, 0.0) or float(row["step"]) for row in rows]


def _column(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """One number a row; NaN where the row has none that is finite."""
    found = (number(row.get(key)) for row in rows)
    return np.array([np.nan if value is None or abs(value) > 1e30 else value for value in found], float)


def _last(name: str, values: np.ndarray, unit: str = "") -> str:
    known = values[np.isfinite(values)]
    return f"{name} at the end: {known[-1]:.3g}{unit}." if len(known) else ""

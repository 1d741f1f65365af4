"""Charts as SVG paths, styled by the page's CSS."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segnet_jax.reporting.page.run_summary import RunSummary, number
from segnet_jax.reporting.training_plot import loss_top, smoothed, thinned

WIDTH, HEIGHT = 400, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 390, 10, 206  # of the plotted area
_MAX_POINTS = 400
_MAX_DOTS = 30


@dataclass(frozen=True)
class Curve:
    """A curve in chart coordinates.

    Attributes:
      name: legend text.
      style: CSS class of its color and stroke.
      path: the SVG path.
      dots: (x, y) of marked points.
    """

    name: str
    style: str
    path: str
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Chart:
    """A chart with its curves and ticks.

    Attributes:
      title: heading, with the unit.
      description: text for screen readers.
      curves: curves, from back to front.
      x_ticks: (x, label).
      y_ticks: (y, label).
    """

    title: str
    description: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def training_charts(run: RunSummary) -> list[Chart]:
    """Return charts of accuracy and loss over the epochs, or none if no steps are logged."""
    if not run.train and not run.val:
        return []
    train, val = run.train, run.val
    end = max(_epochs(train[-1:] + val[-1:]), default=1.0) or 1.0
    accuracy, loss = 100 * _column(train, "accuracy"), _column(train, "loss")
    val_accuracy, miou, val_loss = (
        100 * _column(val, "global_accuracy"),
        100 * _column(val, "miou"),
        _column(val, "loss"),
    )
    split = "validation" if run.about.get("split", "val") == "val" else "test"
    top = loss_top(smoothed(loss), loss, val_loss) if np.isfinite([*loss, *val_loss]).any() else 1.0
    accuracies = [
        ("training, each step", "pale", train, accuracy),
        ("training, smoothed", "train", train, smoothed(accuracy)),
        (f"{split} accuracy", "val", val, val_accuracy),
        (f"{split} mIoU", "miou", val, miou),
    ]
    losses = [
        ("training, each step", "pale", train, loss),
        ("training, smoothed", "train", train, smoothed(loss)),
        (split, "val", val, val_loss),
    ]
    curves = f"Training accuracy, {split} accuracy and mIoU over {end:.4g} epochs. {_last('mIoU', miou, ' %')}"
    return [
        _chart("Accuracy, %", curves, accuracies, end, 100.0),
        _chart("Loss", f"Training and {split} loss over {end:.4g} epochs. {_last('loss', val_loss)}", losses, end, top),
    ]


def comparison_charts(runs: Sequence[RunSummary], names: Sequence[str]) -> list[Chart]:
    """Return charts of the mIoU and the smoothed training loss of several runs over their epochs."""
    end = max((epoch for run in runs for epoch in _epochs(run.train[-1:] + run.val[-1:])), default=0.0)
    if not end:
        return []
    mious, losses, tops = [], [], [1e-6]
    for index, (name, run) in enumerate(zip(names, runs, strict=True)):
        style = f"run{index}"
        mious.append((name, style, run.val, 100 * _column(run.val, "miou")))
        loss = smoothed(_column(run.train, "loss"))
        losses.append((name, style, run.train, loss))
        if np.isfinite(loss).any():
            tops.append(1.05 * float(np.nanpercentile(loss, 99)))
    return [
        _chart("mIoU, %", f"The mIoU of {len(runs)} runs over their epochs.", mious, end, 100.0),
        _chart("Training loss, smoothed", f"The training loss of {len(runs)} runs.", losses, end, max(tops)),
    ]


def _chart(
    title: str, description: str, curves: Sequence[tuple[str, str, list, np.ndarray]], end: float, top: float
) -> Chart:
    def x(epoch: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * epoch / end, 1)

    def y(value: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * min(max(value / top, 0), 1), 1)

    drawn = []
    for name, style, rows, values in curves:
        kept = thinned(values, _MAX_POINTS)
        pairs = zip(_epochs([rows[i] for i in kept]), values[kept], strict=True)
        points = [(x(epoch), y(value)) if math.isfinite(value) else None for epoch, value in pairs]
        finite = tuple(point for point in points if point)
        if finite:
            dots = finite if style not in ("pale", "train") and len(finite) <= _MAX_DOTS or len(finite) == 1 else ()
            drawn.append(Curve(name, style, _path(points), dots))
    x_ticks = tuple((x(tick), f"{tick:g}") for tick in ticks(end, 6))
    return Chart(title, description, tuple(drawn), x_ticks, tuple((y(tick), f"{tick:g}") for tick in ticks(top, 5)))


def ticks(end: float, max_intervals: int) -> list[float]:
    """Return round numbers from 0 to at most `end`, with at most `max_intervals` intervals."""
    power = 10.0 ** math.floor(math.log10(end / max_intervals))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if end / (power * factor) <= max_intervals)
    return [round(index * step, 10) for index in range(math.floor(end / step * (1 + 1e-9)) + 1)]


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Return an SVG path through the points, interrupted at None."""
    parts, command = [], "M"
    for point in points:
        if point is None:
            command = "M"
            continue
        parts.append(f"{command}{point[0]:g} {point[1]:g}")
        command = "L"
    return "".join(parts)


def _epochs(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Return the epoch of each row, or its step if the epoch is missing."""
    return [max(number(row.get("epoch")) or 0.0, 0.0) or float(row["step"]) for row in rows]


def _column(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """Return one value per row, NaN if it is missing, not finite or absurdly large."""
    numbers = (number(row.get(key)) for row in rows)
    return np.array([np.nan if value is None or abs(value) > 1e30 else value for value in numbers], float)


def _last(name: str, values: np.ndarray, unit: str = "") -> str:
    finite = values[np.isfinite(values)]
    return f"Final {name}: {finite[-1]:.3g}{unit}." if len(finite) else ""

"""Draw `progress.png`: accuracy and loss over the iterations, in the style of MATLAB's training window of 2018."""

import io
import os
import textwrap
from collections.abc import Sequence

import numpy as np

from segnet_jax.reporting.remaining_time import duration
from segnet_jax.reporting.tables import SPLIT_WORDS, percent
from segnet_jax.system.files import atomic_write_bytes

_BLUE, _PALE_BLUE = "#0a6ebd", "#a9d0ee"
_ORANGE, _PALE_ORANGE = "#d1520f", "#f7c6a8"
_BLACK, _GREEN, _BAND, _GRAY = "#1a1a1a", "#2e8b3d", "#f1f1f3", "#6a6a6a"
_MAX_POINTS = 2000
_MAX_BANDS = 10


def training_plot(
    metrics: Sequence[dict],
    path: str | os.PathLike,
    *,
    steps_per_epoch: int,
    title: str,
    total_steps: int | None = None,
    device: str = "",
    status: str | None = None,
    split: str = "val",
) -> None:
    """Draw the curves of a training run and replace the picture at `path`.

    Args:
      metrics: the rows of `metrics.jsonl`, from `read_metrics`.
      path: the PNG to write.
      steps_per_epoch: steps of one epoch.
      title: heading, such as the protocol's name.
      total_steps: steps of the whole run; by default the newest step.
      device: hardware in use.
      status: a few words; by default "training" before the last step and "finished" after it.
      split: the evaluated split.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure alive

    train = [row for row in metrics if row["kind"] == "train"]
    val = [row for row in metrics if row["kind"] == "val"]
    last_step = max((row["step"] for row in metrics), default=0)
    total_steps = total_steps or last_step
    status = status or ("finished" if last_step >= total_steps > 0 else "training")

    figure = Figure(figsize=(12.8, 7.2), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    upper = figure.add_axes((0.06, 0.425, 0.67, 0.475))
    lower = figure.add_axes((0.06, 0.085, 0.67, 0.305))
    figure.text(
        0.06,
        0.94,
        textwrap.shorten(title, 100, placeholder="…"),
        fontsize=15,
        weight="bold",
        color=_BLACK,
        parse_math=False,
    )

    _draw_training(upper, train, "accuracy", 100, _BLUE, _PALE_BLUE)
    _draw_validation(upper, val, "global_accuracy", 100, _BLACK, "--", "o")
    _draw_validation(upper, val, "miou", 100, _GREEN, "-", "D")
    upper.set(ylim=(0, 100), yticks=range(0, 101, 10))
    upper.set_ylabel("Accuracy and mIoU (%)", fontsize=11)

    smooth_loss = _draw_training(lower, train, "loss", 1, _ORANGE, _PALE_ORANGE)
    val_loss = _draw_validation(lower, val, "loss", 1, _BLACK, "--", "o")
    lower.set_ylim(0, loss_top(smooth_loss, _values(train, "loss"), val_loss))
    lower.set_ylabel("Loss", fontsize=11)
    lower.set_xlabel("Iteration", fontsize=11)

    _format_axes(upper, last_step, total_steps, steps_per_epoch, label_epochs=True)
    _format_axes(lower, last_step, total_steps, steps_per_epoch, label_epochs=False)
    upper.tick_params(labelbottom=False)
    scored = SPLIT_WORDS[split]
    sections = _facts(train, val, last_step, total_steps, steps_per_epoch, device, status, scored)
    bottom = _write_facts(figure, sections)
    _draw_key(figure, bottom, scored)

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    atomic_write_bytes(path, buffer.getvalue())


def _values(rows: Sequence[dict], key: str) -> np.ndarray:
    """Return one value per row, NaN if it is missing or not finite."""
    values = np.array([np.nan if row.get(key) is None else row[key] for row in rows], float)
    return np.where(np.isfinite(values), values, np.nan)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the exponential moving average over a fiftieth of the values, at least five, skipping NaN."""
    decay = 1 - 2 / (max(5, len(values) / 50) + 1)
    total = weight = 0.0
    means = []
    for value in values:
        if not np.isnan(value):
            total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        means.append(total / weight if weight else np.nan)
    return np.array(means)


def thinned(values: np.ndarray, max_points: int = _MAX_POINTS) -> np.ndarray:
    """Return indices of about `max_points` values that keep all peaks: the minimum and maximum of each chunk."""
    if len(values) <= max_points:
        return np.arange(len(values))
    chunks = np.array_split(np.arange(len(values)), max_points // 2)
    filled = np.nan_to_num(values, nan=0.0)
    extremes = [(chunk[filled[chunk].argmin()], chunk[filled[chunk].argmax()]) for chunk in chunks]
    return np.unique(extremes)


def _draw_training(axes, rows, key, factor, dark, pale) -> np.ndarray:
    steps, values = _values(rows, "step"), factor * _values(rows, key)
    mean = smoothed(values)
    kept = thinned(values)
    axes.plot(steps[kept], values[kept], color=pale, linewidth=0.8, zorder=2, marker="o" if len(rows) == 1 else None)
    kept = kept[:: max(1, len(kept) // 1000)] if len(rows) > _MAX_POINTS else kept
    axes.plot(steps[kept], mean[kept], color=dark, linewidth=1.8, zorder=3, solid_joinstyle="round")
    return mean


def _draw_validation(axes, rows, key, factor, color, style, marker) -> np.ndarray:
    steps, values = _values(rows, "step"), factor * _values(rows, key)
    size = 5 if len(rows) <= 40 else 3
    axes.plot(steps, values, color=color, linestyle=style, linewidth=1.1, marker=marker, markersize=size, zorder=4)
    return values


def loss_top(smooth: np.ndarray, raw: np.ndarray, val: np.ndarray) -> float:
    """Return the top of the loss axis, ignoring a few outlying steps or evaluations."""
    raw, val = raw[~np.isnan(raw)], val[~np.isnan(val)]
    if not raw.size:
        return 1.05 * val.max() if val.size else 1.0
    typical = max(np.percentile(raw, 99), np.nanmax(smooth))
    return 1.05 * max(typical, min(val.max(initial=0), 1.5 * typical), 1e-6)


def _format_axes(axes, last_step: int, total_steps: int, steps_per_epoch: int, *, label_epochs: bool) -> None:
    """Add epoch bands, grid and ticks to a panel."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    end = max(total_steps, last_step, 1)  # the planned length, so that the picture shows what is still to come
    num_epochs = -(-end // steps_per_epoch)
    for place, (first, last) in enumerate(epoch_bands(num_epochs)):
        left, right = (first - 1) * steps_per_epoch, min(last * steps_per_epoch, end)
        if place % 2:
            axes.axvspan(left, right, color=_BAND, linewidth=0, zorder=0)
        name = f"{first}" if first == last else f"{first}–{last}"
        if place == 0:
            name = f"Epoch {name}" if first == last else f"Epochs {name}"
        if label_epochs and right - left >= 0.05 * end:
            look = dict(ha="center", va="bottom", fontsize=8.5, color=_GRAY, zorder=5)
            axes.text((left + right) / 2, 0.02, name, transform=axes.get_xaxis_transform(), **look)
    axes.set_xlim(0, 1.01 * end)  # space for the last marker
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.yaxis.set_label_coords(-0.05, 0.5)
    axes.grid(color="#d9d9de", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color=_GRAY)
    for side in axes.spines.values():
        side.set(color="#b0b0b6", linewidth=0.8)


def epoch_bands(num_epochs: int) -> list[tuple[int, int]]:
    """Split the epochs into at most ten bands of a round width, as (first, last) counted from 1."""
    round_numbers = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    width = next(number for number in round_numbers if num_epochs <= number * _MAX_BANDS)
    return [(first, min(first + width - 1, num_epochs)) for first in range(1, num_epochs + 1, width)]


def _facts(train, val, last_step, total_steps, steps_per_epoch, device, status, scored) -> dict[str, dict[str, str]]:
    """Return the text column: section -> name -> value."""
    newest = train[-1] if train else {}
    mious = _values(val, "miou")
    best = "-"
    if np.isfinite(mious).any():
        row = val[int(np.nanargmax(mious))]
        best = f"{percent(row['miou'])} (epoch {row['step'] / steps_per_epoch:.4g})"
    seconds = max((row.get("seconds") or 0 for row in (*train[-1:], *val[-1:])), default=None)
    rate = newest.get("learning_rate")
    speed = next((row["images_per_second"] for row in reversed(train) if row.get("images_per_second")), None)
    num_epochs = -(-total_steps // steps_per_epoch)
    epoch = min(last_step // steps_per_epoch + 1, num_epochs)
    return {
        "Results": {
            "Status": status,
            "Best mIoU": best,
            f"{scored} mIoU": percent(val[-1].get("miou")) if val else "-",
            f"{scored} accuracy": percent(val[-1].get("global_accuracy")) if val else "-",
        },
        "Training time": {
            "Elapsed": duration(seconds),
            "Images per second": f"{speed:,.1f}" if speed else "-",
        },
        "Training cycle": {
            "Epoch": f"{epoch} of {num_epochs}",
            "Iteration": f"{last_step:,} of {total_steps:,}",
            "Iterations per epoch": f"{steps_per_epoch:,}",
        },
        "Other": {
            "Device": device or "-",
            "Learning rate": "-" if rate is None else f"{rate:.3g}",
        },
    }


def _write_facts(figure, sections: dict[str, dict[str, str]]) -> float:
    """Write the text column from the top, and return the y position below it."""
    y = 0.885
    for heading, facts in sections.items():
        figure.text(0.755, y, heading, fontsize=11, weight="bold", color=_BLACK)
        y -= 0.032
        for name, value in facts.items():
            figure.text(0.755, y, name, fontsize=9.5, color=_GRAY)
            for line in textwrap.wrap(value, 20)[:3] or [""]:
                figure.text(0.872, y, line, fontsize=9.5, color=_BLACK, parse_math=False)
                y -= 0.028
        y -= 0.018
    return y


def _draw_key(figure, top: float, scored: str) -> None:
    """Draw the legend of both panels below the text column."""
    from matplotlib.lines import Line2D

    figure.text(0.755, top, "Key", fontsize=11, weight="bold", color=_BLACK)
    entries = (
        ("Training accuracy, smoothed", dict(color=_BLUE, linewidth=2)),
        ("Training accuracy", dict(color=_PALE_BLUE, linewidth=1.5)),
        ("Training loss, smoothed", dict(color=_ORANGE, linewidth=2)),
        ("Training loss", dict(color=_PALE_ORANGE, linewidth=1.5)),
        (f"{scored} accuracy, loss", dict(color=_BLACK, linestyle="--", marker="o", markersize=5)),
        (f"{scored} mIoU", dict(color=_GREEN, marker="D", markersize=5)),
    )
    figure.legend(
        handles=[Line2D([], [], label=name, **look) for name, look in entries],
        loc="upper left",
        bbox_to_anchor=(0.75, top - 0.005),
        frameon=False,
        fontsize=9.5,
        labelcolor=_BLACK,
        handlelength=2.6,
        labelspacing=0.45,
        borderpad=0,
        borderaxespad=0.4,
    )

"""Plot a learning-rate range test: the loss over the learning rate."""

import io
import os

import numpy as np

from segnet_jax.system.files import atomic_write_bytes


def learning_rate_plot(
    rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, suggested: float | None, path: str | os.PathLike
) -> None:
    """Plot the losses, their moving average and the suggested rate over the rates, each [N], and write the PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure alive

    figure = Figure(figsize=(8, 5), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color="#f7c6a8", label="loss of each step")
    axes.plot(rates, smoothed, color="#d1520f", label="moving average")
    if suggested is not None:
        axes.axvline(suggested, color="#1a1a1a", linestyle="--", label=f"falls fastest: {suggested:.2g}")
    axes.set_xscale("log")
    lowest, first = np.min(smoothed), smoothed[0]
    axes.set_ylim(min(np.min(losses), lowest) * 0.95, max(first, lowest) * 1.5)
    axes.set_xlabel("Learning rate")
    axes.set_ylabel("Loss")
    axes.legend()
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    atomic_write_bytes(path, buffer.getvalue())

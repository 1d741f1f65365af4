"""Draw figures of predicted and measured scaling."""

import io
import math
from collections.abc import Sequence

from communication import (
    ARTICLE,
    ARTICLE_SPEED_UP,
    ATTAINED,
    DEVICES,
    HOP_LATENCY,
    HOST_BANDWIDTH,
    MACHINES,
    MESSAGE_LATENCY,
    NOTE,
    OURS,
    OVERLAPS,
    SCALINGS,
    Machine,
    num_hosts,
    predict,
)
from measured_rows import Measured, held, one_device, predicted_efficiencies

_BLACK, _GREY, _BAND = "#1a1a1a", "#6a6a6a", "#f1f1f3"
_COLORS = ("#0a6ebd", "#2e8b3d", "#d1520f")  # one for each of SCALINGS
_OVERLAP_LOOKS = (  # one for each of OVERLAPS
    dict(linestyle="-", linewidth=1.6, marker="o", markersize=4),
    dict(linestyle=(0, (4, 2)), linewidth=1.3),
)
_ARTICLE_LOOK = dict(linestyle="", marker="*", markersize=12, color=_BLACK, zorder=5)


def draw_predictions() -> bytes:
    """Plot efficiency over devices with the project's settings, one panel per machine; return a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: it keeps every figure alive

    figure = Figure(figsize=(8, 5), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.82, bottom=0.36, wspace=0.06)
    figure.text(0.08, 0.945, f"Data-parallel training of SegNet: {NOTE}", fontsize=13, weight="bold", color=_BLACK)
    subtitle = (
        "BatchNorm synchronized, gradients sent in 32 bits; shaded: between no and full overlap of their all-reduce"
    )
    figure.text(0.08, 0.9, subtitle, fontsize=9, color=_GREY)
    for axes, machine in zip((left, right), MACHINES.values(), strict=True):
        _draw_machine(axes, machine)
    left.set_ylabel("Efficiency (% of ideal speed-up)", fontsize=9.5, color=_BLACK)

    efficiency = 100 * ARTICLE_SPEED_UP / ARTICLE["devices"]
    left.plot(ARTICLE["devices"], efficiency, **_ARTICLE_LOOK)
    text = (
        f"{ARTICLE['minutes_on_1']} → {ARTICLE['minutes_on_8']} min\n{ARTICLE_SPEED_UP:.2f}x of 8 = {efficiency:.0f}%"
    )
    left.text(7, efficiency, text, fontsize=8.5, color=_BLACK, ha="right", va="center", linespacing=1.3)
    _draw_key(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_machine(axes, machine: Machine) -> None:
    axes.set_title(machine.title, fontsize=9.5, loc="left", color=_BLACK)
    axes.axvspan(math.sqrt(2) * machine.devices_per_host, 99, color=_BAND, linewidth=0, zorder=0)
    for scaling, color in zip(SCALINGS, _COLORS, strict=True):
        ends = [
            [100 * predict(machine, scaling, devices, **OURS, overlap=overlap).efficiency for devices in DEVICES]
            for overlap in OVERLAPS
        ]
        axes.fill_between(DEVICES, *ends, color=color, alpha=0.13, linewidth=0, zorder=2)
        for end, look in zip(ends, _OVERLAP_LOOKS, strict=True):
            axes.plot(DEVICES, end, color=color, zorder=3, **look)
    axes.set_xscale("log", base=2)
    hosts = {devices: num_hosts(machine, devices) for devices in DEVICES}
    axes.set_xticks(DEVICES, [f"{n}\n{f'{hosts[n]} hosts' if hosts[n] > 1 else ' '}" for n in DEVICES])
    axes.set(xlim=(0.9, 38), ylim=(0, 104), yticks=range(0, 101, 20))
    axes.set_xlabel("Devices (grey: hosts joined by 25 Gbit/s)", fontsize=9.5, color=_BLACK)
    axes.grid(color="#d9d9de", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color=_GREY)
    for side in axes.spines.values():
        side.set(color="#b0b0b6", linewidth=0.8)


def _draw_key(figure) -> None:
    """Draw the legend on the left and the assumptions on the right."""
    from matplotlib.lines import Line2D

    batches = [
        (f"{s.kind}: {s.held.replace(' ', ' images ', 1)}", dict(color=c, linewidth=2.2))
        for s, c in zip(SCALINGS, _COLORS, strict=True)
    ]
    ways = [
        (name, dict(color=_BLACK) | look)
        for name, look in zip(("no overlap", "full overlap"), _OVERLAP_LOOKS, strict=True)
    ]
    entries = (*batches, *ways, ("published: MATLAB, 2018", _ARTICLE_LOOK))
    look = dict(loc="upper left", frameon=False, fontsize=9, labelcolor=_BLACK, columnspacing=1.2, handlelength=2.3)
    handles = [Line2D([], [], label=label, **style) for label, style in entries]
    figure.legend(handles=handles, ncols=2, bbox_to_anchor=(0.068, 0.215), **look)

    bus = " and ".join(f"{machine.bus_bandwidth.value / 1e9:g}" for machine in MACHINES.values())
    assumed = (
        f"Assumed: compute at {ATTAINED.value:.0%} of the roofline,",
        f"{bus} GB/s a device inside a host, {HOST_BANDWIDTH}",
        f"between hosts, {MESSAGE_LATENCY.value * 1e6:g} µs a BatchNorm message and",
        f"{HOP_LATENCY.value * 1e6:g} µs a hop between hosts; input always ready.",
    )
    figure.text(0.637, 0.193, "\n".join(assumed), fontsize=8, color=_GREY, linespacing=1.6, va="top")


def draw_measured(machine: Machine, rows: Sequence[Measured]) -> bytes:
    """Plot measured efficiencies over the predicted bands, one panel per BatchNorm setting; return a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, sync in zip(figure.subplots(1, 2, sharey=True), (True, False), strict=True):
        known = [(row, one_device(row, rows)) for row in rows if row.sync_batch_norm == sync]
        kinds = sorted({held(row) for row, _ in known}, reverse=True)
        for kind, color in zip(kinds, _COLORS * 9, strict=False):
            line = [(row, base) for row, base in known if base and held(row) == kind]
            line.sort(key=lambda pair: pair[0].devices)
            if len(line) < 2:
                continue  # only the single device
            devices = [row.devices for row, _ in line]
            ends = [[100 * end for end in predicted_efficiencies(machine, *pair)] for pair in line]
            axes.fill_between(devices, *zip(*ends, strict=True), color=color, alpha=0.25, linewidth=0)
            axes.plot(devices, ends, color=color, linewidth=0.8, linestyle=":")
            found = [100 * row.images_per_second / (row.devices * base.images_per_second) for row, base in line]
            axes.plot(devices, found, color=color, marker="o", markersize=4, label=f"measured, {kind}")
        axes.set_xscale("log", base=2)
        counts = sorted({row.devices for row in rows})
        axes.set_xticks(counts, counts)
        axes.set_title(f"BatchNorm {'synchronized' if sync else 'of each device'}", fontsize=10, loc="left")
        axes.set(xlabel="devices", ylim=(0, 110))
        axes.grid(color="#d9d9de", linewidth=0.6)
        if axes.lines:
            axes.legend(fontsize=8, frameon=False, loc="lower left")
    figure.axes[0].set_ylabel("efficiency, % of ideal")
    figure.suptitle(f"Measured, and shaded what the links of {machine.title} predict", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()

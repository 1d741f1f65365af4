"""Predicts how data-parallel training of SegNet scales, from counted bytes and assumed speeds. It measures nothing.

python experiments/scaling/predict.py
python experiments/scaling/predict.py --measured experiments/scaling/measured.json --machine h200
"""

import argparse
import io
import itertools
import json
import math
import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import rich.box
from rich.console import Console
from rich.table import Table

from segnet_jax.command import run_command
from segnet_jax.errors import UserError
from segnet_jax.files import atomic_write_bytes, atomic_write_text

NOTE = "predicted, not measured"

# --- What the prediction starts from ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """A number that the prediction starts from.

    Attributes:
      value: the number.
      unit: what it counts.
      source: begins with "counted" or "assumed".
    """

    value: float
    unit: str
    source: str

    def __str__(self) -> str:
        power = math.floor(math.log10(self.value)) // 3
        prefix = {-2: "µ", 3: "G", 4: "T"}.get(power)
        return f"{self.value / 1000**power:g} {prefix}{self.unit}" if prefix else f"{self.value:g} {self.unit}"


PARAMETERS = Given(29_441_419, "parameters", "counted: SegNet, 11 classes, no bias before BatchNorm")
BATCH_NORMS = Given(25, "layers", "counted: after each of the 26 convolutions but the last")
IMAGE_FLOP = Given(640e9, "FLOP/image", "counted: 26 convolutions at 360x480, forward and both gradients, with padding")
BACKWARD_SHARE = Given(2 / 3, "of a step's compute", "counted: both gradients are 426 of the 640 GFLOP")
IMAGE_BYTES = Given(2.42e9, "B/image", "counted: 16-bit maps, nothing fused across a convolution")
STEP_BYTES = Given(0.94e9, "B/step", "counted: optimiser, gradients, 16-bit copies of the parameters")
ATTAINED = Given(0.6, "of the roofline", "assumed: for every batch size, though small ones will do worse")
MESSAGE_LATENCY = Given(40e-6, "s/message", "assumed: a BatchNorm all-reduce of a few kB inside a host")
HOP_LATENCY = Given(30e-6, "s/hop", "assumed: TCP; between hosts, a message takes 2 log2(hosts) hops more")
HOST_BANDWIDTH = Given(2.5e9, "B/s", "assumed: usable of 25 Gbit/s, shared by all devices of a host")


@dataclass(frozen=True)
class Machine:
    """One kind of host.

    Attributes:
      title: what it is, and the precision of the activations.
      devices_per_host: how many share NVLink.
      flops: what convolutions can reach, FLOP/s.
      memory_bandwidth: of a device's own memory, B/s.
      bus_bandwidth: what each device sends in a ring all-reduce of the gradients, B/s.
    """

    title: str
    devices_per_host: int
    flops: Given
    memory_bandwidth: Given
    bus_bandwidth: Given


MACHINES = {
    "p3.16xlarge": Machine(
        title="p3.16xlarge: 8 V100 16 GB, NVLink 2, float16",
        devices_per_host=8,
        flops=Given(90e12, "FLOP/s", "assumed: usable of the published peak of 125e12"),
        memory_bandwidth=Given(790e9, "B/s", "assumed: usable of the published 900e9"),
        # Too much for two devices, which share at most two of the six links, 50e9; a difference of 0.4 ms a step.
        bus_bandwidth=Given(60e9, "B/s", "assumed: 40% of the published 150e9 one way, for 2 to 8 devices alike"),
    ),
    "h200": Machine(
        title="8 H200, NVLink 4, bfloat16",
        devices_per_host=8,
        flops=Given(790e12, "FLOP/s", "assumed: a large matrix product's, of the published peak of 989e12"),
        memory_bandwidth=Given(4.3e12, "B/s", "assumed: a large copy's, of the published 4.8e12"),
        # Cautious: for larger messages, NCCL's authors speak of 370e9 (github.com/NVIDIA/nccl-tests/issues/212).
        bus_bandwidth=Given(180e9, "B/s", "assumed: 40% of the published 450e9 one way, as for the V100"),
    ),
}


@dataclass(frozen=True)
class Scaling:
    """What is held while devices are added: images a device ("weak") or images of all devices a step ("strong")."""

    kind: str
    batch_size: int

    def batch_size_per_device(self, devices: int) -> int:
        """Images that each device takes a step."""
        return self.batch_size if self.kind == "weak" else self.batch_size // devices

    @property
    def held(self) -> str:
        """The batch size in words."""
        return f"{self.batch_size} a device" if self.kind == "weak" else f"{self.batch_size} in all"


SCALINGS = (Scaling("weak", 4), Scaling("weak", 16), Scaling("strong", 32))
DEVICES = (1, 2, 4, 8, 16, 32)
OVERLAPS = ("none", "full")
LINKS = tuple({"sync_batch_norm": sync, "wire_bits": bits} for sync in (True, False) for bits in (32, 16))
OURS = LINKS[0]  # what the project does by default

# Published: NVIDIA's container article of 2018. MATLAB on a p3.2xlarge and a p3.16xlarge, 100 epochs of CamVid.
ARTICLE = {"devices": 8, "batch_size_per_device": 4, "minutes_on_1": 121, "minutes_on_8": 37}
ARTICLE_SPEED_UP = ARTICLE["minutes_on_1"] / ARTICLE["minutes_on_8"]

# --- The model -------------------------------------------------------------------------------------------------------


def compute_seconds(machine: Machine, batch_size: int) -> float:
    """A step of one device: arithmetic and memory traffic one after the other, at the attained share of the speeds."""
    arithmetic = batch_size * IMAGE_FLOP.value / machine.flops.value
    memory = (batch_size * IMAGE_BYTES.value + STEP_BYTES.value) / machine.memory_bandwidth.value
    return (arithmetic + memory) / ATTAINED.value


def ring_bytes(num_bytes: float, members: int) -> float:
    """Bytes that each member of a ring sends to all-reduce so many."""
    return 2 * (members - 1) / members * num_bytes


def num_hosts(machine: Machine, devices: int) -> int:
    """Hosts that so many devices fill."""
    return math.ceil(devices / machine.devices_per_host)


def gradient_seconds(machine: Machine, devices: int, wire_bits: int) -> float:
    """The gradients' all-reduce: a ring inside each host, then a ring of hosts."""
    hosts = num_hosts(machine, devices)
    num_bytes = PARAMETERS.value * wire_bits / 8
    inside = ring_bytes(num_bytes, math.ceil(devices / hosts)) / machine.bus_bandwidth.value
    return inside + ring_bytes(num_bytes, hosts) / HOST_BANDWIDTH.value


def batch_norm_seconds(machine: Machine, devices: int) -> float:
    """Synchronised BatchNorm's all-reduces, one a layer and direction, too small for anything but latency."""
    if devices == 1:
        return 0.0
    hops = 2 * math.ceil(math.log2(num_hosts(machine, devices)))
    return 2 * BATCH_NORMS.value * (MESSAGE_LATENCY.value + hops * HOP_LATENCY.value)


def step_seconds(
    machine: Machine, devices: int, compute: float, *, sync_batch_norm: bool, wire_bits: int, overlap: str
) -> float:
    """A step of all devices.

    Args:
      machine: gives the links.
      devices: how many take part.
      compute: seconds that the step takes on one device by itself.
      sync_batch_norm: whether BatchNorm's messages are sent; nothing can hide them.
      wire_bits: of each gradient sent.
      overlap: "none", or "full": the gradients' all-reduce hides behind the backward pass as far as that lasts. Both
        are bounds; full overlap cannot be had, for the last gradients are known only when that pass ends.
    """
    gradients = gradient_seconds(machine, devices, wire_bits)
    if overlap == "full":
        gradients = max(0.0, gradients - BACKWARD_SHARE.value * compute)
    return compute + gradients + (batch_norm_seconds(machine, devices) if sync_batch_norm else 0.0)


@dataclass(frozen=True)
class Prediction:
    """What is predicted of one setting.

    Attributes:
      step_ms: milliseconds a step.
      images_per_second: of all devices.
      speed_up: over one device with the same batch a device (weak) or the same batch in all (strong).
      efficiency: speed-up / devices, 0 to 1.
    """

    step_ms: float
    images_per_second: float
    speed_up: float
    efficiency: float


def predict(
    machine: Machine, scaling: Scaling, devices: int, *, sync_batch_norm: bool, wire_bits: int, overlap: str
) -> Prediction:
    """Predicts one setting; see `step_seconds`."""
    batch_size = scaling.batch_size_per_device(devices)
    compute = compute_seconds(machine, batch_size)
    links = {"sync_batch_norm": sync_batch_norm, "wire_bits": wire_bits, "overlap": overlap}
    seconds = step_seconds(machine, devices, compute, **links)
    images_per_second = devices * batch_size / seconds
    speed_up = images_per_second * compute_seconds(machine, scaling.batch_size) / scaling.batch_size
    return Prediction(1000 * seconds, images_per_second, speed_up, speed_up / devices)


# --- The JSON --------------------------------------------------------------------------------------------------------


def given_numbers() -> dict[str, Given]:
    """Every number that the prediction starts from, by name."""
    named = {name.lower(): value for name, value in globals().items() if isinstance(value, Given)}
    speeds = ("flops", "memory_bandwidth", "bus_bandwidth")
    return named | {f"{name} {speed}": getattr(MACHINES[name], speed) for name in MACHINES for speed in speeds}


def prediction_json() -> str:
    """The text of `prediction.json`: everything given, a line each, and every row, a line each."""
    rows = []
    for name, scaling, devices, links, overlap in itertools.product(MACHINES, SCALINGS, DEVICES, LINKS, OVERLAPS):
        prediction = asdict(predict(MACHINES[name], scaling, devices, **links, overlap=overlap))
        row = {"machine": name, "scaling": scaling.kind, "devices": devices}
        row |= {"batch_size_per_device": scaling.batch_size_per_device(devices), **links, "overlap": overlap}
        rows.append(row | {f"predicted_{key}": float(f"{value:.4g}") for key, value in prediction.items()})
    sections = {
        "note": f"{NOTE}: this project measured no number in this file",
        "not_modelled": "input, evaluation, stragglers, the few bytes of loss, counts and BatchNorm statistics",
        "published": ARTICLE | {"speed_up": round(ARTICLE_SPEED_UP, 2), "source": "NVIDIA's article of 2018, MATLAB"},
        "given": {name: asdict(given) for name, given in given_numbers().items()},
        "rows": rows,
    }
    return json.dumps(sections, indent=1).replace("\n   ", " ").replace("\n  }", " }") + "\n"


# --- The tables ------------------------------------------------------------------------------------------------------


def span(low: float, high: float, decimals: int = 0) -> str:
    """Writes a range, or one number where both ends look alike."""
    low, high = f"{low:,.{decimals}f}", f"{high:,.{decimals}f}"
    return low if low == high else f"{low}–{high}"


def new_table(title: str, first: str, *others: str) -> Table:
    """A table whose first column holds words and whose others hold numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def prediction_table(machine: Machine) -> Table:
    """Every setting of a machine; ranges go from no overlap to full overlap."""
    efficiencies = [f"{'sync' if k['sync_batch_norm'] else 'local'}\n{k['wire_bits']} bit\n%" for k in LINKS]
    title = f"{machine.title}: {NOTE}"
    table = new_table(title, "batch", "devices", "images/s", "speed-up", *efficiencies)
    for scaling, devices in itertools.product(SCALINGS, DEVICES):
        ends = [[predict(machine, scaling, devices, **links, overlap=way) for way in OVERLAPS] for links in LINKS]
        table.add_row(
            {1: scaling.kind, 2: scaling.held}.get(devices),
            str(devices),
            span(*(end.images_per_second for end in ends[0])),
            span(*(end.speed_up for end in ends[0]), decimals=1),
            *(span(*(100 * end.efficiency for end in pair)) for pair in ends),
            end_section=devices == DEVICES[-1],
        )
    return table


def print_predictions(console: Console) -> None:
    """Prints all tables, how to read them, and what is assumed."""
    for machine in MACHINES.values():
        console.print(prediction_table(machine))
    console.print(
        "Ranges: from no overlap of the gradients' all-reduce to full overlap. Percent: efficiency with BatchNorm over "
        "all devices (sync) or each by itself (local), gradients sent in 32 or 16 bits. Images/s, speed-up: sync, 32."
    )
    console.print("\nNot modelled: input (taken to be always ready), evaluation, stragglers. Assumed, not measured:")
    for name, given in given_numbers().items():
        if given.source.startswith("assumed"):
            console.print(f"  {name}: {given} ({given.source.removeprefix('assumed: ')})", soft_wrap=True)
    minutes = f"{ARTICLE['minutes_on_1']} min on 1 V100, {ARTICLE['minutes_on_8']} min on 8"
    efficiency = ARTICLE_SPEED_UP / ARTICLE["devices"]
    console.print(f"\nPublished, to compare: MATLAB, 2018, {minutes}: {ARTICLE_SPEED_UP:.2f}x, {100 * efficiency:.0f}%")


# --- Beside a measurement --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One row of the benchmark's list "scaling"."""

    devices: int
    batch_size_per_device: int
    sync_batch_norm: bool
    images_per_second: float
    scaling: str = "weak"

    def is_sound(self) -> bool:
        """Whether types and ranges are right; a bool is no count."""
        counts, speed = (self.devices, self.batch_size_per_device), self.images_per_second
        return (
            all(type(count) is int and count > 0 for count in counts)
            and type(self.sync_batch_norm) is bool
            and type(speed) in (int, float)
            and 0 < speed < math.inf
        )


def read_measured(path: pathlib.Path) -> list[Measured]:
    """Reads what `python -m segnet_jax.benchmark scaling --json FILE` wrote.

    Raises:
      UserError: where the file cannot be read, is no JSON, or lacks what is needed of it.
    """
    names = Measured.__annotations__
    try:
        rows = [
            Measured(**{name: row[name] for name in names if name != "scaling" or name in row})
            for row in json.loads(path.read_text("utf-8"))["scaling"]
        ]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f'{path} must hold a list "scaling" of rows with {", ".join(names)}') from error
    for row in rows:
        if not row.is_sound():
            raise UserError(f"{path}: needs whole devices and batch, true or false, and a speed above 0; found {row}")
    if not any(row.devices == 1 for row in rows):
        raise UserError(f"{path}: none of its {len(rows)} rows is of one device, from which speed-ups are counted")
    return rows


def one_device(row: Measured, rows: Sequence[Measured]) -> Measured | None:
    """The row of one device with the same batch, if there is one; preferably with the same BatchNorm."""
    alone = [r for r in rows if r.devices == 1 and r.scaling == row.scaling]
    found = [r for r in alone if row.scaling == "strong" or r.batch_size_per_device == row.batch_size_per_device]
    return min(found, key=lambda r: r.sync_batch_norm != row.sync_batch_norm, default=None)


def predicted_efficiencies(machine: Machine, row: Measured, base: Measured) -> list[float]:
    """Without and with full overlap, 0 to 1; compute time is the measured one, so only communication is predicted."""
    compute = row.batch_size_per_device / base.images_per_second
    links = OURS | {"sync_batch_norm": row.sync_batch_norm}
    return [compute / step_seconds(machine, row.devices, compute, **links, overlap=overlap) for overlap in OVERLAPS]


def measured_table(machine: Machine, rows: Sequence[Measured]) -> Table:
    """Each row beside its prediction, which one without a row of one device at its batch size cannot have."""
    title = f"Measured, beside what the measured speed of one device and\nthe links of {machine.title} predict"
    headings = ["images/s\nmeasured", "images/s\npredicted", "% of ideal\nmeasured", "% of ideal\npredicted"]
    table = new_table(title, "BatchNorm", "images a\ndevice", "devices", *headings)
    for row in sorted(rows, key=lambda r: (not r.sync_batch_norm, _held(r), r.devices)):
        cells = ["-", "-", "-"]
        if base := one_device(row, rows):
            ideal = row.devices * base.images_per_second
            ends = predicted_efficiencies(machine, row, base)
            cells = [span(*(ideal * end for end in ends), decimals=1), f"{100 * row.images_per_second / ideal:.0f}"]
            cells.append(span(*(100 * end for end in ends)))
        facts = (row.batch_size_per_device, row.devices, f"{row.images_per_second:,.1f}")
        table.add_row("sync" if row.sync_batch_norm else "local", *map(str, facts), *cells)
    return table


# --- The figure ------------------------------------------------------------------------------------------------------

_BLACK, _GREY, _BAND = "#1a1a1a", "#6a6a6a", "#f1f1f3"
_COLORS = ("#0a6ebd", "#2e8b3d", "#d1520f")  # one for each of SCALINGS
_OVERLAP_LOOKS = (  # one for each of OVERLAPS
    dict(linestyle="-", linewidth=1.6, marker="o", markersize=4),
    dict(linestyle=(0, (4, 2)), linewidth=1.3),
)
_ARTICLE_LOOK = dict(linestyle="", marker="*", markersize=12, color=_BLACK, zorder=5)


def draw() -> bytes:
    """The figure as PNG: efficiency over devices with the project's own settings, a panel a machine."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: it keeps every figure alive

    figure = Figure(figsize=(8, 5), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.82, bottom=0.36, wspace=0.06)
    figure.text(0.08, 0.945, f"Data-parallel training of SegNet: {NOTE}", fontsize=13, weight="bold", color=_BLACK)
    subtitle = (
        "BatchNorm synchronised, gradients sent in 32 bits; shaded: between no and full overlap of their all-reduce"
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
    """Draws the key on the left and what is assumed on the right."""
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


def _held(row: Measured) -> str:
    """What is held while devices are added, in words."""
    batch = row.batch_size_per_device
    return f"strong: {batch * row.devices} images in all" if row.scaling == "strong" else f"weak: {batch} a device"


def draw_measured(machine: Machine, rows: Sequence[Measured]) -> bytes:
    """Measured efficiencies over the bands that are predicted, as PNG; a panel for each way of BatchNorm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, sync in zip(figure.subplots(1, 2, sharey=True), (True, False), strict=True):
        known = [(row, one_device(row, rows)) for row in rows if row.sync_batch_norm == sync]
        kinds = sorted({_held(row) for row, _ in known}, reverse=True)
        for kind, color in zip(kinds, _COLORS * 9, strict=False):
            line = [(row, base) for row, base in known if base and _held(row) == kind]
            line.sort(key=lambda pair: pair[0].devices)
            if len(line) < 2:
                continue  # nothing but the one device itself
            devices = [row.devices for row, _ in line]
            ends = [[100 * end for end in predicted_efficiencies(machine, *pair)] for pair in line]
            axes.fill_between(devices, *zip(*ends, strict=True), color=color, alpha=0.25, linewidth=0)
            axes.plot(devices, ends, color=color, linewidth=0.8, linestyle=":")
            found = [100 * row.images_per_second / (row.devices * base.images_per_second) for row, base in line]
            axes.plot(devices, found, color=color, marker="o", markersize=4, label=f"measured, {kind}")
        axes.set_xscale("log", base=2)
        counts = sorted({row.devices for row in rows})
        axes.set_xticks(counts, counts)
        axes.set_title(f"BatchNorm {'synchronised' if sync else 'of each device'}", fontsize=10, loc="left")
        axes.set(xlabel="devices", ylim=(0, 110))
        axes.grid(color="#d9d9de", linewidth=0.6)
        axes.legend(fontsize=8, frameon=False, loc="lower left")
    figure.axes[0].set_ylabel("efficiency, % of ideal")
    figure.suptitle(f"Measured, and shaded what the links of {machine.title} predict", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


# --- The command -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).parent
    parser.add_argument("--out", type=pathlib.Path, default=here / "prediction.json", help="the figure goes beside it")
    parser.add_argument("--measured", type=pathlib.Path, help="a benchmark's JSON to compare with")
    parser.add_argument("--figure", type=pathlib.Path, help="PNG to draw what was --measured and what is predicted to")
    parser.add_argument(
        "--machine", choices=MACHINES, default="p3.16xlarge", help="whose links --measured is held against"
    )
    given = parser.parse_args(argv)
    console = Console(highlight=False)
    if given.measured:
        machine, rows = MACHINES[given.machine], read_measured(given.measured)
        console.print(measured_table(machine, rows))
        if given.figure:
            atomic_write_bytes(given.figure, draw_measured(machine, rows))
        return
    if not given.out.parent.is_dir():
        raise UserError(f"--out {given.out}: there is no folder {given.out.parent}")
    print_predictions(console)
    atomic_write_text(given.out, prediction_json())
    atomic_write_bytes(given.out.with_suffix(".png"), draw())


if __name__ == "__main__":
    run_command(main)

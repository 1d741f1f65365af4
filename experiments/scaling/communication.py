"""A model of the time of a data-parallel SegNet step, from counted bytes and assumed speeds."""

import math
from dataclasses import dataclass

NOTE = "predicted, not measured"

# --- What the prediction starts from ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """An input of the prediction.

    Attributes:
      value: numeric value.
      unit: unit of the value.
      source: origin, beginning with "counted" or "assumed".
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
STEP_BYTES = Given(0.94e9, "B/step", "counted: optimizer, gradients, 16-bit copies of the parameters")
ATTAINED = Given(0.6, "of the roofline", "assumed: for every batch size, though small ones will do worse")
MESSAGE_LATENCY = Given(40e-6, "s/message", "assumed: a BatchNorm all-reduce of a few kB inside a host")
HOP_LATENCY = Given(30e-6, "s/hop", "assumed: TCP; between hosts, a message takes 2 log2(hosts) hops more")
HOST_BANDWIDTH = Given(2.5e9, "B/s", "assumed: usable of 25 Gbit/s, shared by all devices of a host")


@dataclass(frozen=True)
class Machine:
    """A kind of host.

    Attributes:
      title: name and precision of the activations.
      devices_per_host: number of devices joined by NVLink.
      flops: peak of convolutions, FLOP/s.
      memory_bandwidth: bandwidth of a device's memory, B/s.
      bus_bandwidth: rate at which each device sends in a ring all-reduce of the gradients, B/s.
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
    """The quantity kept constant while devices are added: batch per device ("weak") or total batch ("strong")."""

    kind: str
    batch_size: int

    def batch_size_per_device(self, devices: int) -> int:
        """Return the images per device and step."""
        return self.batch_size if self.kind == "weak" else self.batch_size // devices

    @property
    def held(self) -> str:
        """Description of the batch size."""
        return f"{self.batch_size} a device" if self.kind == "weak" else f"{self.batch_size} in all"


SCALINGS = (Scaling("weak", 4), Scaling("weak", 16), Scaling("strong", 32))
DEVICES = (1, 2, 4, 8, 16, 32)
OVERLAPS = ("none", "full")
LINKS = tuple({"sync_batch_norm": sync, "wire_bits": bits} for sync in (True, False) for bits in (32, 16))
OURS = LINKS[0]  # the project's default

# Published: NVIDIA's container article of 2018. MATLAB on a p3.2xlarge and a p3.16xlarge, 100 epochs of CamVid.
ARTICLE = {"devices": 8, "batch_size_per_device": 4, "minutes_on_1": 121, "minutes_on_8": 37}
ARTICLE_SPEED_UP = ARTICLE["minutes_on_1"] / ARTICLE["minutes_on_8"]


def given_numbers() -> dict[str, Given]:
    """Return every input of the prediction by name."""
    named = {name.lower(): value for name, value in globals().items() if isinstance(value, Given)}
    speeds = ("flops", "memory_bandwidth", "bus_bandwidth")
    return named | {f"{name} {speed}": getattr(MACHINES[name], speed) for name in MACHINES for speed in speeds}


# --- The model -------------------------------------------------------------------------------------------------------


def compute_seconds(machine: Machine, batch_size: int) -> float:
    """Return the time of a step on one device: arithmetic plus memory traffic, at the attained fraction of peak."""
    arithmetic = batch_size * IMAGE_FLOP.value / machine.flops.value
    memory = (batch_size * IMAGE_BYTES.value + STEP_BYTES.value) / machine.memory_bandwidth.value
    return (arithmetic + memory) / ATTAINED.value


def ring_bytes(num_bytes: float, members: int) -> float:
    """Return the bytes that each member of a ring sends in an all-reduce."""
    return 2 * (members - 1) / members * num_bytes


def num_hosts(machine: Machine, devices: int) -> int:
    """Return the number of hosts for a number of devices."""
    return math.ceil(devices / machine.devices_per_host)


def gradient_seconds(machine: Machine, devices: int, wire_bits: int) -> float:
    """Return the time of the gradient all-reduce: a ring inside each host, then a ring of hosts."""
    hosts = num_hosts(machine, devices)
    num_bytes = PARAMETERS.value * wire_bits / 8
    inside = ring_bytes(num_bytes, math.ceil(devices / hosts)) / machine.bus_bandwidth.value
    return inside + ring_bytes(num_bytes, hosts) / HOST_BANDWIDTH.value


def batch_norm_seconds(machine: Machine, devices: int) -> float:
    """Return the time of synchronized BatchNorm's all-reduces, one per layer and direction, bound by latency."""
    if devices == 1:
        return 0.0
    hops = 2 * math.ceil(math.log2(num_hosts(machine, devices)))
    return 2 * BATCH_NORMS.value * (MESSAGE_LATENCY.value + hops * HOP_LATENCY.value)


def step_seconds(
    machine: Machine, devices: int, compute: float, *, sync_batch_norm: bool, wire_bits: int, overlap: str
) -> float:
    """Return the time of a step of all devices.

    Args:
      machine: kind of host, which gives the links.
      devices: number of devices.
      compute: seconds that the step takes on a single device.
      sync_batch_norm: whether BatchNorm's messages are sent; they cannot be overlapped.
      wire_bits: bits of each gradient sent.
      overlap: "none", or "full" if the gradients' all-reduce overlaps with the backward pass for as long as that lasts.
        Both are bounds; full overlap is impossible, because the last gradients are known only when the pass ends.
    """
    gradients = gradient_seconds(machine, devices, wire_bits)
    if overlap == "full":
        gradients = max(0.0, gradients - BACKWARD_SHARE.value * compute)
    return compute + gradients + (batch_norm_seconds(machine, devices) if sync_batch_norm else 0.0)


@dataclass(frozen=True)
class Prediction:
    """The prediction for one setting.

    Attributes:
      step_ms: milliseconds per step.
      images_per_second: throughput of all devices.
      speed_up: relative to one device with the same batch per device (weak) or the same total batch (strong).
      efficiency: speed-up / devices, 0 to 1.
    """

    step_ms: float
    images_per_second: float
    speed_up: float
    efficiency: float


def predict(
    machine: Machine, scaling: Scaling, devices: int, *, sync_batch_norm: bool, wire_bits: int, overlap: str
) -> Prediction:
    """Predict one setting; see `step_seconds`."""
    batch_size = scaling.batch_size_per_device(devices)
    compute = compute_seconds(machine, batch_size)
    links = {"sync_batch_norm": sync_batch_norm, "wire_bits": wire_bits, "overlap": overlap}
    seconds = step_seconds(machine, devices, compute, **links)
    images_per_second = devices * batch_size / seconds
    speed_up = images_per_second * compute_seconds(machine, scaling.batch_size) / scaling.batch_size
    return Prediction(1000 * seconds, images_per_second, speed_up, speed_up / devices)

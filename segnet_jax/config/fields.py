"""One training run as one frozen dataclass, and its TOML form.

The order of precedence: the defaults below, the named protocol, the config file, the flags.
"""

import dataclasses
import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction

from segnet_jax.system.errors import UserError

# What a resumed run makes of a changed field. FREE: it may differ, for it does not change the experiment, or the
# checkpoint guards it, the data by their fingerprints and the images a device takes by the global batch. OF_THIS_START:
# likewise, and it is not written into the run's config. OVERRIDE: the state fits, the experiment becomes another, which
# --override allows. All others are refused.
FREE, OF_THIS_START, OVERRIDE = ({"on_resume": rule} for rule in ("free", "of this start", "override"))


@dataclass(frozen=True)
class Config:
    """One training run.

    The defaults are those of the 2018 MATLAB example where it says something: SGD with momentum, 100 epochs, four
    images a device, flips and shifts. Protocols and experiments write down their differences.
    """

    protocol: str = ""  # named recipe that the other fields start from: demo, camvid-tutorial, camvid-matlab-2018

    # data
    data: str = field(default="camvid", metadata=FREE)  # a folder, "camvid" (made by prepare), or "synthetic" scenes
    split_rule: Literal["tutorial", "matlab", "leave-out"] = "tutorial"  # 367/101/233, 60/40 of 701, or a sequence out
    leave_out: str = ""  # sequence to validate on, such as 0016E5, all others trained on; with --split-rule leave-out
    scenes: tuple[int, int] = (240, 60)  # training and validation scenes to render for --data synthetic
    image_size: tuple[int, int] = (360, 480)  # height and width that images and labels are resized to
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"  # how: shape lost, with void bars, or ends cut off
    images: str = ""  # of a folder, take only images whose names match, such as "*.jpg"
    label_files: str = ""  # of a folder, take only label files whose paths match, such as "*masks_a*"
    label_suffix: str = ""  # what follows an image's name in its label's, such as _mask; empty: found from the folder
    map: Annotated[tuple[str, ...], UseAppendAction] = ()  # OLD=NEW: what the value NEW means in labels, OLD means too
    labels_start_at: int = -1  # the value of the first class in label files; smaller ones are void; -1: not stated
    labels_as: Literal["auto", "values", "colors"] = "auto"  # what palette and grey labels store, where both would fit
    threshold: int = 0  # two classes, the second from this value of a label on, such as 128 for JPEG masks; 0: off
    unknown_color: Literal["error", "ignore"] = "error"  # colors of labels that mean no class; ignore: they are void
    mostly_void: bool = False  # accept labels of which more than half is void
    exif: Literal["refuse", "apply", "ignore", "by-label"] = "refuse"  # of images that carry an EXIF rotation
    resize_labels: Literal["off", "nearest"] = "off"  # bring labels of another size than their image to its size
    image_range: tuple[int, int] = (0, 0)  # black and white of images of 16 bits, such as 0 4095; 0 0: refuse them
    follow_links: bool = False  # read files that links lead to out of the folder
    val_fraction: float = 0.0  # deal so much of the training and validation images anew to validation; 0: as they are
    flip: bool = field(default=True, metadata=OVERRIDE)  # reflect left/right with probability 1/2
    shift: int = field(
        default=10, metadata=OVERRIDE
    )  # largest shift in x and y, pixels; shifted-in pixels are 0 and void
    scale: tuple[float, float] = field(
        default=(1.0, 1.0), metadata=OVERRIDE
    )  # least and largest factor that images are enlarged by, about a random place; what is beyond them is 0 and void
    color: float = field(default=0.0, metadata=OVERRIDE)  # random contrast, brightness, colour cast: strength, 0 to 1

    # network
    network: Literal["segnet", "segnet-basic"] = "segnet"  # segnet-basic: four stages of 7x7, the paper's small one
    encoder: Literal["vgg16", "vgg19"] = "vgg16"  # whose convolutions SegNet goes down and up
    depth: int = 5  # encoder stages, 1 to 5
    width: float = 1.0  # factor on every hidden layer's channels
    pooling: Literal["floor", "ceil"] = "floor"  # odd rows: dropped (MATLAB, PyTorch) or kept (Caffe)
    upsampling: Literal["indices", "bilinear", "learnt"] = "indices"  # by pooling indices, or what in their place
    encoder_addition: bool = False  # add the encoder's maps to the decoder's (SegNet-Basic-EncoderAddition)
    decoder: Literal["full", "single-channel"] = "full"  # of segnet-basic: single-channel kernels see one map alone
    dropout: float = field(default=0.0, metadata=OVERRIDE)  # share of numbers dropped, Bayesian SegNet's 0.5
    conv_bias: bool = False  # a bias before each BatchNorm: published, but inert
    final_batch_norm: bool = False  # BatchNorm and ReLU after the last convolution too
    batch_norm_momentum: float = field(
        default=0.9, metadata=OVERRIDE
    )  # share of the old running statistics that a step keeps
    batch_norm_epsilon: float = field(default=1e-5, metadata=OVERRIDE)  # added to the variance
    batch_norm_bias: float = 0.0  # what BatchNorm's shift begins with
    batch_norm: Literal["running", "recompute"] = field(
        default="running", metadata=OVERRIDE
    )  # statistics to score and use; recompute: over the training images after the training, as the authors did
    sync_batch_norm: bool = field(
        default=True, metadata=OVERRIDE
    )  # statistics over all devices, so that 8 x 4 images equal 1 x 32
    init: str = "vgg16"  # encoder weights: vgg16, vgg16_bn, vgg19, none, or a weight file
    preprocessing: Literal["auto", "torch", "caffe", "raw"] = "auto"  # of pixels; auto: what the weights expect

    # training
    epochs: int = field(default=100, metadata=OVERRIDE)  # passes over the training split
    batch_size_per_device: int = field(default=4, metadata=FREE)  # images a device takes at once
    grad_accum_steps: int = field(
        default=1, metadata=OVERRIDE
    )  # batches a device takes per step; their gradients are added up
    learning_rate: float = field(default=1e-3, metadata=OVERRIDE)  # of SGD, at its highest
    schedule: Literal["constant", "step", "poly", "cosine"] = field(
        default="constant", metadata=OVERRIDE
    )  # of the learning rate, per step
    warmup_epochs: float = field(default=0.0, metadata=OVERRIDE)  # linear rise of the learning rate at the start
    step_epochs: int = field(default=30, metadata=OVERRIDE)  # schedule step: epochs between two drops
    step_factor: float = field(default=0.1, metadata=OVERRIDE)  # schedule step: factor of each drop
    poly_power: float = field(
        default=0.9, metadata=OVERRIDE
    )  # schedule poly: exponent of the remaining share of the training
    momentum: float = field(default=0.9, metadata=OVERRIDE)  # of SGD
    weight_decay: float = field(default=5e-4, metadata=OVERRIDE)  # L2 on convolution kernels
    decay_scale: bool = field(default=False, metadata=OVERRIDE)  # L2 on BatchNorm's scale too, as in Caffe's files
    bias_lr_mult: float = 1.0  # factor for convolutions' biases; Caffe's: 2
    ema_decay: float = 0.0  # share of the old average of the parameters that a step keeps, such as 0.99; 0: no average
    class_weights: Literal["none", "matlab", "auto-present", "auto-global", "caffe"] = field(
        default="matlab", metadata=OVERRIDE
    )  # balancing rule
    seed: int = 0  # of the first weights, the order of the images, flips and shifts
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of activations

    # devices and input
    devices: str = field(default="all", metadata=FREE)  # how many devices to train on: a number or "all"
    fake_devices: int = field(default=0, metadata=FREE)  # pretend that the CPU is so many devices, for trying out
    input: Literal["auto", "host", "device"] = field(default="auto", metadata=FREE)  # where batches are made
    steps_per_dispatch: int = field(default=1, metadata=FREE)  # steps a dispatch, with input device; 1 on the CPU
    half_gradients: bool = field(default=False, metadata=OVERRIDE)  # sum gradients over devices in 16 bits
    deterministic: bool = field(
        default=False, metadata=FREE
    )  # on GPUs, the same bits whenever the same command is started on the same machine; slower. A CPU's always are

    # several hosts; SLURM, Open MPI, Kubernetes (with the extra k8s) and TPU pods are found by themselves
    coordinator: str = field(default="", metadata=OF_THIS_START)  # host:port of process 0, to join by hand
    process_id: int = field(default=-1, metadata=OF_THIS_START)  # of this process, from 0; with --coordinator
    num_processes: int = field(default=0, metadata=OF_THIS_START)  # how many there are; with --coordinator
    heartbeat: int = field(default=30, metadata=FREE)  # seconds without a sign of life until a process is lost

    # the run
    run: str = field(default="", metadata=OF_THIS_START)  # folder to leave; default: the next free runs/NAME-NUMBER
    resume: bool = field(
        default=False, metadata=OF_THIS_START
    )  # go on with --run where it stopped, bit for bit on a CPU, on GPUs with --deterministic
    override: bool = field(default=False, metadata=OF_THIS_START)  # resume with a changed recipe, and note the change
    max_steps: int = field(default=0, metadata=OF_THIS_START)  # stop and save after so many steps in all; 0: never
    evaluate_every: int = field(default=1, metadata=FREE)  # epochs between two evaluations
    checkpoint_every: int = field(default=1, metadata=FREE)  # epochs between two checkpoints
    keep_checkpoints: int = field(default=2, metadata=FREE)  # newest checkpoints to keep, beside the best
    on_disk_full: Literal["stop", "wait"] = field(default="stop", metadata=FREE)  # wait: go on once there is room
    result_checkpoint: Literal["best", "last"] = field(
        default="best", metadata=OVERRIDE
    )  # which one result.json scores; last: nothing was selected
    best_metric: Literal["miou", "global_accuracy"] = field(
        default="miou", metadata=OVERRIDE
    )  # what the best is best in

    def __post_init__(self):
        """Refuses values outside their range, so that no mistake lives to be compiled.

        Raises:
          UserError: naming the flag, its range and the value.
        """
        for name, (low, high) in _RANGES.items():
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if not low <= value <= high:  # nor is NaN
                    given = " ".join(map(str, values)) if isinstance(values, tuple) else values
                    raise UserError(f"{_flag(name)} must be between {low:g} and {high:g}, got {given}")
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, str) and any(unicodedata.category(each) in ("Cc", "Cs") for each in value):
                raise UserError(f"{_flag(item.name)} has a character that no name has, got {value!r}")
        for change in self.map:
            if not re.fullmatch("[0-9]{1,5}=[0-9]{1,5}", change) or max(map(int, change.split("="))) >= 2**16:
                raise UserError(f"--map must be OLD=NEW, two values of label files from 0 to 65535, got {change!r}")
        object.__setattr__(self, "map", tuple(dict.fromkeys(self.map)))  # a resumed run's, given once more
        if self.image_range != (0, 0) and self.image_range[0] >= self.image_range[1]:
            low, high = self.image_range
            raise UserError(f"--image-range must be the values of black and white, black first, got {low} {high}")
        if self.scale[0] > self.scale[1]:
            raise UserError(f"--scale must be the least and the largest factor, got {self.scale[0]} {self.scale[1]}")
        if self.devices != "all" and not re.fullmatch("0*[1-9][0-9]{0,8}", self.devices):
            raise UserError(f'--devices must be a positive number or "all", got {self.devices!r}')
        if self.steps_per_dispatch > 1 and self.input == "host":
            raise UserError(
                f"--steps-per-dispatch {self.steps_per_dispatch} needs --input device, where no batch is sent"
            )
        if self.resume and not self.run:
            raise UserError("--resume needs the run to go on with: add --run FOLDER")

    def to_toml(self) -> str:
        """The run as TOML: every field but those of this one start."""
        return self._toml_of(("free", "override", "refused"))

    def hash(self) -> str:
        """sha256 of the experiment: of every field that may not differ, unsaid, when the run is resumed."""
        return hashlib.sha256(self._toml_of(("override", "refused")).encode()).hexdigest()

    def _toml_of(self, rules: tuple[str, ...]) -> str:
        return "".join(
            f"{item.name} = {json.dumps(getattr(self, item.name), ensure_ascii=False)}\n"  # flat JSON is TOML
            for item in dataclasses.fields(self)
            if on_resume(item.name) in rules
        )


_POSITIVE = 1e-12
_RANGES = {
    "scenes": (1, 1_000_000),
    "image_size": (1, 16_384),
    "labels_start_at": (-1, 255),
    "threshold": (0, 255),
    "image_range": (0, 65_535),
    "val_fraction": (0, 0.9),
    "shift": (0, 16_384),
    "scale": (0.25, 4),
    "color": (0, 1),
    "depth": (1, 5),
    "width": (1e-3, 16),
    "batch_norm_momentum": (0, 1 - 1e-6),
    "batch_norm_epsilon": (_POSITIVE, 1),
    "batch_norm_bias": (-1, 1),
    "dropout": (0, 0.9),
    "epochs": (1, 1_000_000),
    "batch_size_per_device": (1, 65_536),
    "grad_accum_steps": (1, 65_536),
    "learning_rate": (_POSITIVE, 10),
    "warmup_epochs": (0, 1_000_000),
    "step_epochs": (1, 1_000_000),
    "step_factor": (_POSITIVE, 1),
    "poly_power": (_POSITIVE, 100),
    "momentum": (0, 1 - 1e-6),
    "weight_decay": (0, 1),
    "bias_lr_mult": (0, 100),
    "ema_decay": (0, 1 - 1e-6),
    "seed": (0, 2**63 - 1),
    "fake_devices": (0, 1024),
    "steps_per_dispatch": (1, 10_000),
    "max_steps": (0, 2**31 - 1),
    "process_id": (-1, 2**20),
    "num_processes": (0, 2**20),
    "heartbeat": (1, 86_400),
    "evaluate_every": (1, 1_000_000),
    "checkpoint_every": (1, 1_000_000),
    "keep_checkpoints": (1, 1000),
}


def on_resume(name: str) -> str:
    """What a resumed run makes of a changed field: "free", "of this start", "override" or "refused"."""
    return Config.__dataclass_fields__[name].metadata.get("on_resume", "refused")


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Fields of the experiment that differ: name -> (old, new). What may differ on resuming is not compared."""
    return {
        item.name: (getattr(old, item.name), getattr(new, item.name))
        for item in dataclasses.fields(Config)
        if on_resume(item.name) in ("override", "refused") and getattr(old, item.name) != getattr(new, item.name)
    }


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

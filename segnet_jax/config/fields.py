"""One training run as one frozen dataclass, and its TOML form.

The order of precedence: the defaults below, the named protocol, the config file, the flags.
"""

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction

from segnet_jax.config.ranges import MAX_STAGES, RANGES
from segnet_jax.system.errors import UserError

# What a resumed run makes of a changed field. FREE: it may differ, for it does not change the experiment, or the
# checkpoint guards it, the data by their fingerprints and the images a device takes by the global batch. OF_THIS_START:
# likewise, and it is not written into the run's config. OVERRIDE: the state fits, the experiment becomes another, which
# --override allows. All others are refused.
FREE, OF_THIS_START, OVERRIDE = ({"on_resume": rule} for rule in ("free", "of this start", "override"))


FORMAT_VERSION = 1
"""Of run folders; a run of a later version is refused."""


@dataclass(frozen=True)
class Config:
    """One training run.

    The defaults are those of the 2018 MATLAB example where it says something: SGD with momentum, 100 epochs, four
    images a device, flips and shifts. Protocols and experiments write down their differences.
    """

    protocol: str = ""  # named recipe that the other fields start from: demo, camvid-tutorial, camvid-matlab-2018

    # data
    data: str = field(default="camvid", metadata=FREE)  # a folder, "camvid" (made by prepare), or "synthetic" scenes
    split_rule: Literal["tutorial", "matlab", "trainval", "leave-out"] = "tutorial"  # how CamVid's frames are split
    leave_out: str = ""  # sequence to validate on, such as 0016E5, all others trained on; with --split-rule leave-out
    leave_out_train: int = 0  # train only on the first N frames of --leave-out, validate on its others; 0: as above
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
    color: float = field(default=0.0, metadata=OVERRIDE)  # strength of random contrast, brightness and color, 0 to 1

    # network
    network: Literal["segnet", "segnet-basic"] = "segnet"  # segnet-basic: the paper's small network, four 7x7 stages
    encoder: Literal["vgg16", "vgg19"] = "vgg16"  # encoder architecture; the decoder mirrors it
    depth: int = 5  # encoder stages, 1 to 5
    width: float = 1.0  # factor on every hidden layer's channels
    stage_convolutions: tuple[int, ...] = ()  # convolutions of each encoder stage, such as 2 2 2 2; empty: --encoder's
    stage_channels: tuple[int, ...] = ()  # channels of each encoder stage, such as 64 64 64 64; empty: --encoder's
    kernel_size: int = 3  # rows and columns of segnet's kernels, odd
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
    batch_norm_variance: Literal["batches", "population"] = field(  # of recompute: mean over batches, or of all pixels
        default="batches", metadata=OVERRIDE
    )
    sync_batch_norm: bool = field(
        default=True, metadata=OVERRIDE
    )  # statistics over all devices, so that 8 x 4 images equal 1 x 32
    init: str = "vgg16"  # first weights: vgg16, vgg16_bn or vgg19, a file of such; a run or file of a SegNet; none
    # BatchNorm behind a VGG's convolutions. identity: scale 1, shift 0; preserve: scale and shift measured so that the
    # encoder computes what the VGG computes; rescale: preserve, with kernels rescaled to the norm of He initialization;
    # normalize: rescale, with each layer's output divided by one number that makes its scales about 1
    init_batch_norm: Literal["identity", "preserve", "rescale", "normalize"] = "identity"
    preprocessing: Literal["auto", "torch", "caffe", "raw"] = "auto"  # of pixels; auto: what the weights expect
    freeze: str = "none"  # stages that are not trained: "encoder", or N for stages 1 to N; their BatchNorm too

    # training
    epochs: int = field(default=100, metadata=OVERRIDE)  # passes over the training split
    batch_size_per_device: int = field(default=4, metadata=FREE)  # images a device takes at once
    # batches per optimizer step; their gradients are summed
    grad_accum_steps: int = field(default=1, metadata=OVERRIDE)
    optimizer: Literal["sgd", "adamw"] = "sgd"  # SGD with momentum, or AdamW with decoupled weight decay
    learning_rate: float = field(default=1e-3, metadata=OVERRIDE)  # peak learning rate
    encoder_lr_mult: float = 1.0  # learning-rate multiplier of the encoder's parameters
    schedule: Literal["constant", "step", "poly", "cosine"] = field(
        default="constant", metadata=OVERRIDE
    )  # of the learning rate, per step
    warmup_epochs: float = field(default=0.0, metadata=OVERRIDE)  # linear rise of the learning rate at the start
    step_epochs: int = field(default=30, metadata=OVERRIDE)  # schedule step: epochs between two drops
    step_factor: float = field(default=0.1, metadata=OVERRIDE)  # schedule step: factor of each drop
    poly_power: float = field(
        default=0.9, metadata=OVERRIDE
    )  # schedule poly: exponent of the remaining share of the training
    momentum: float = field(default=0.9, metadata=OVERRIDE)  # of SGD; AdamW's beta1
    weight_decay: float = field(default=5e-4, metadata=OVERRIDE)  # L2 on convolution kernels
    decay_scale: bool = field(default=False, metadata=OVERRIDE)  # L2 on BatchNorm's scale too, as in Caffe's files
    decay_shift: bool = field(default=False, metadata=OVERRIDE)  # L2 on BatchNorm's shift (offset) too, as in MATLAB
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
    mapping: Literal["pmap", "shard_map"] = field(
        default="pmap", metadata=FREE
    )  # how a step is mapped over devices; the results are the same to the last bit
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
        for name, (low, high) in RANGES.items():
            values = getattr(self, name)
            for value in values if isinstance(values, tuple | list) else (values,):
                if not low <= value <= high:  # nor is NaN
                    given = " ".join(map(str, values)) if isinstance(values, tuple | list) else values
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
        if self.kernel_size % 2 == 0:
            raise UserError(f"--kernel-size must be odd, got {self.kernel_size}")
        self._check_stages()
        if self.devices != "all" and not re.fullmatch("0*[1-9][0-9]{0,8}", self.devices):
            raise UserError(f'--devices must be a positive number or "all", got {self.devices!r}')
        if self.freeze not in ("none", "encoder") and not re.fullmatch("0*[1-9][0-9]{0,3}", self.freeze):
            raise UserError(f'--freeze must be "none", "encoder" or a number of stages, got {self.freeze!r}')
        if self.steps_per_dispatch > 1 and self.input == "host":
            raise UserError(
                f"--steps-per-dispatch {self.steps_per_dispatch} needs --input device, where no batch is sent"
            )
        if self.resume and not self.run:
            raise UserError("--resume needs the run to go on with: add --run FOLDER")

    def _check_stages(self) -> None:
        for name in ("stage_convolutions", "stage_channels"):  # lists where they come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        counts = {len(stages) for stages in (self.stage_convolutions, self.stage_channels) if stages}
        if len(counts) > 1:
            raise UserError(
                f"--stage-convolutions has {len(self.stage_convolutions)} stages and --stage-channels "
                f"{len(self.stage_channels)}: give one number per stage in both"
            )
        if counts and max(counts) > MAX_STAGES:
            raise UserError(f"a network has at most {MAX_STAGES} stages, got {max(counts)}: give fewer numbers")

    @property
    def num_stages(self) -> int:
        """Return the number of encoder stages: `depth`, or fewer where the stages are given and are fewer."""
        given = len(self.stage_convolutions or self.stage_channels)
        return min(self.depth, given) if given else self.depth

    @property
    def frozen_stages(self) -> int:
        """Encoder stages that are not trained, counted from the first."""
        if self.freeze == "encoder":
            return self.num_stages
        return 0 if self.freeze == "none" else int(self.freeze)

    def to_toml(self) -> str:
        """Return the config of a run as TOML: its format version, and every field but those of a single start."""
        return _toml_of({"format_version": FORMAT_VERSION} | self._fields(("free", "override", "refused")))

    def experiment(self) -> dict[str, Any]:
        """Return the fields of the experiment that differ from the defaults, as JSON; each checkpoint carries them.

        Without the defaults, a field that a later version adds does not make older runs another experiment.
        """
        defaults = Config()._fields(("override", "refused"))
        return {name: value for name, value in self._fields(("override", "refused")).items() if value != defaults[name]}

    def hash(self) -> str:
        """Return the sha256 of the experiment: of its fields that must match to resume a run."""
        return hash_of(self.experiment())

    def _fields(self, rules: tuple[str, ...]) -> dict[str, Any]:
        names = (item.name for item in dataclasses.fields(self) if on_resume(item.name) in rules)
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in names}


def hash_of(experiment: Mapping[str, Any]) -> str:
    """The sha256 of the fields of an experiment, in their order, as hex."""
    return hashlib.sha256(_toml_of(experiment).encode("utf-8", "surrogatepass")).hexdigest()


def _toml_of(fields: Mapping[str, Any]) -> str:
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in fields.items())


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

"""The config of a training run, a frozen dataclass, and its TOML form.

Later sources override earlier ones: the defaults below, the protocol, the config file, the flags.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import arg

from segnet_jax.config.class_weights_flag import ClassWeights, given_weights
from segnet_jax.config.field_checks import check_fields
from segnet_jax.config.flag_specs import (
    ClassNames,
    DataFolder,
    Degrees,
    Given,
    GrayRange,
    ImageSize,
    Loggers,
    Name,
    NetworkName,
    NumDevices,
    Pattern,
    RunFolder,
    Section,
    SequenceName,
    Suffix,
    ValueMap,
    check_network_name,
)
from segnet_jax.config.lr_multipliers import check_multipliers
from segnet_jax.config.ranges import MAX_STAGES, check_ranges
from segnet_jax.config.toml_form import hash_of, toml_of

# Whether a field may change when a run is resumed. FREE: yes; it does not change the experiment, or it is checked
# otherwise (the data by fingerprint, the batch by its total size). OF_THIS_START: yes; the run's config does not store
# it. OVERRIDE: only with --override; the state fits, but the experiment changes. Other fields must match.
FREE, OF_THIS_START, OVERRIDE = ({"on_resume": rule} for rule in ("free", "of this start", "override"))


FORMAT_VERSION = 1
"""Format version of run folders; later versions are refused."""


@dataclass(frozen=True)
class Config:
    """One training run.

    The defaults follow the 2018 MATLAB example where it specifies a value: SGD with momentum, 100 epochs, four images
    per device, flips and shifts.
    """

    SECTIONS: ClassVar[tuple[Section, ...]] = (
        Section("recipe", "protocol", ("protocol", "config")),
        Section("data", "data", ("data", "image_size", "val_fraction")),
        Section("augmentation", "flip"),
        Section("network", "network"),
        Section("initial weights", "init", ("init", "freeze")),
        Section("training", "epochs", ("epochs", "steps", "batch_size_per_device", "learning_rate")),
        Section("devices and input", "devices", ("devices",)),
        Section("several hosts", "coordinator"),
        Section("run", "run", ("run", "resume")),
        Section("weight averaging and logs", "swa_epochs"),
    )

    protocol: Name = ""  # named recipe that sets the defaults of the other flags, such as demo or scratch

    # data
    # a dataset folder, s3:// or gs:// address, "camvid" (from prepare), or "synthetic"
    data: DataFolder = field(default="camvid", metadata=FREE)
    split_rule: Literal["tutorial", "matlab", "trainval", "leave-out"] = "tutorial"  # how to split CamVid's frames
    # with --split-rule leave-out: validate on this sequence, such as 0016E5; train on the others
    leave_out: SequenceName = ""
    leave_out_train: int = 0  # train on the first N frames of --leave-out and validate on the rest; 0: see --leave-out
    # number of training and validation scenes to render for --data synthetic
    scenes: Annotated[tuple[int, int], arg(metavar="TRAIN VAL")] = (240, 60)
    image_size: ImageSize = (360, 480)  # height and width to resize images and labels to
    # how to reach --image-size: stretch (distorts), letterbox (pads with void), crop (cuts the edges)
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"
    images: Pattern = ""  # use only images of the folder whose names match this pattern, such as "*.jpg"
    label_files: Pattern = ""  # use only label files of the folder whose paths match this pattern, such as "*masks_a*"
    label_suffix: Suffix = ""  # suffix of label names after the image's name, such as _mask; empty: detect it
    # read label value OLD as NEW, such as 255=1; may be repeated
    map: ValueMap = ()
    labels_start_at: int = -1  # label value of the first class; smaller values are void; -1: not specified
    labels_as: Literal["auto", "values", "colors"] = "auto"  # what palette and gray labels store, if it is ambiguous
    threshold: int = 0  # two classes: label values >= this are the second class, e.g. 128 for JPEG masks; 0: off
    unknown_color: Literal["error", "ignore"] = "error"  # on label colors of no class; ignore: read as void
    mask_order: ClassNames = ()  # masks of one class each: classes that may overlap, from below to the top
    unmasked: Literal["auto", "background", "void"] = "auto"  # masks of one class each: what pixels in no mask are
    multi_label: bool = False  # masks of one class each: a pixel has all classes of its masks, at most 7 in all
    mostly_void: bool = False  # accept labels that are more than half void
    exif: Literal["refuse", "apply", "ignore", "by-label"] = "refuse"  # how to read images with an EXIF rotation
    resize_labels: Literal["off", "nearest"] = "off"  # resize labels whose size differs from their image's
    image_range: GrayRange = (0, 0)  # black and white values of 16-bit images, such as 0 4095; 0 0: refuse them
    channels: int = 3  # image channels; 3: RGB, converted if necessary; others, such as 1 or 4: read as stored
    image_bits: Literal["8", "16"] = "8"  # bits per channel; 16 reads 16-bit PNG or TIFF files as stored, 0 to 65535
    follow_links: bool = False  # follow symbolic links that lead out of the dataset folder
    val_fraction: float = 0.0  # fraction of the images to validate on, such as 0.2; 0: the dataset's own split
    folds: int = 0  # cross-validation: train one run for each of N folds of the training and validation images
    fold: int = 0  # with --folds: train only the run that validates on fold N; 0: all runs
    flip: bool = field(default=True, metadata=OVERRIDE)  # flip left/right with probability 1/2
    shift: int = field(default=10, metadata=OVERRIDE)  # maximum random shift in x and y, pixels; padded with 0 and void
    # range of the random scale factor, about a random center; padded with 0 and void
    scale: Annotated[tuple[float, float], arg(metavar="MIN MAX")] = field(default=(1.0, 1.0), metadata=OVERRIDE)
    color: float = field(default=0.0, metadata=OVERRIDE)  # strength of random contrast, brightness and color, 0 to 1
    blur: float = field(default=0.0, metadata=OVERRIDE)  # maximum standard deviation of random Gaussian blur, pixels
    rotate: Degrees = field(default=0.0, metadata=OVERRIDE)  # maximum random rotation, degrees; padded with 0 and void
    shear: Degrees = field(default=0.0, metadata=OVERRIDE)  # maximum random horizontal shear, degrees; padded likewise
    vertical_flip: bool = field(default=False, metadata=OVERRIDE)  # flip upside down with probability 1/2
    # train on random crops of this size from images of --image-size, the size for evaluation; 0 0: off
    crop: ImageSize = field(default=(0, 0), metadata=OVERRIDE)
    # probability of pasting half of the classes of another training image (ClassMix), for small datasets
    class_mix: float = field(default=0.0, metadata=OVERRIDE)
    # custom augmentation: a JAX function of image [B,H,W,C], label [B,H,W] and keys [B] that returns image and label
    augment: Annotated[str, arg(metavar="MODULE:FUNCTION")] = field(default="", metadata=OVERRIDE)

    # network
    # segnet, segnet-basic (the paper's small network), unet (on SegNet's encoder), or MODULE:CLASS, a custom network
    network: NetworkName = "segnet"
    encoder: Literal["vgg16", "vgg19"] = "vgg16"  # encoder architecture; the decoder mirrors it
    depth: int = 5  # number of encoder stages, 1 to 5
    width: float = 1.0  # multiplier of the channels of every hidden layer
    stage_convolutions: tuple[int, ...] = ()  # convolutions per encoder stage, such as 2 2 2 2; empty: as --encoder
    stage_channels: tuple[int, ...] = ()  # channels per encoder stage, such as 64 64 64 64; empty: as --encoder
    kernel_size: int = 3  # kernel size of segnet's convolutions, odd
    pooling: Literal["floor", "ceil"] = "floor"  # odd sizes: floor drops the last row (MATLAB, PyTorch), ceil keeps it
    # decoder upsampling: max unpooling by pooling indices, or an alternative; for unet, indices means bilinear
    upsampling: Literal["indices", "bilinear", "learnt"] = "indices"
    encoder_addition: bool = False  # add encoder feature maps to the decoder's (SegNet-Basic-EncoderAddition)
    decoder: Literal["full", "single-channel"] = "full"  # segnet-basic: single-channel (depthwise) decoder kernels
    dropout: float = field(default=0.0, metadata=OVERRIDE)  # dropout rate; Bayesian SegNet uses 0.5
    conv_bias: bool = False  # add a bias before each BatchNorm, as published; it has no effect
    final_batch_norm: bool = False  # apply BatchNorm and ReLU after the last convolution too
    # output layer; softmax: a channel per class (--multi-label: a sigmoid each); sigmoid, for two classes: one channel
    output: Literal["softmax", "sigmoid"] = "softmax"
    batch_norm_momentum: float = field(default=0.9, metadata=OVERRIDE)  # decay of the running statistics per step
    batch_norm_epsilon: float = field(default=1e-5, metadata=OVERRIDE)  # added to BatchNorm's variance
    batch_norm_bias: float = 0.0  # initial value of BatchNorm's shift
    # inference statistics; recompute: precise statistics over the training images, after training, as the authors do
    batch_norm: Literal["running", "recompute"] = field(default="running", metadata=OVERRIDE)
    # with --batch-norm recompute: mean of the batches' variances, or variance of all pixels
    batch_norm_variance: Literal["batches", "population"] = field(default="batches", metadata=OVERRIDE)
    # compute batch statistics over all devices, so that 8 x 4 images are equivalent to 1 x 32
    sync_batch_norm: bool = field(default=True, metadata=OVERRIDE)
    # initial weights: vgg16, vgg16_bn, vgg19, a weight file, a run, an exported folder, hf://OWNER/NAME,
    # one of them in a bucket as s3://BUCKET/PATH, or none
    init: Annotated[str, arg(metavar="WEIGHTS")] = "vgg16"
    # initial BatchNorm after pretrained VGG convolutions. identity: scale 1, shift 0; preserve: scale and shift with
    # which the encoder computes what the VGG computes; rescale: preserve, with kernels rescaled to the norm of He
    # initialization; normalize: rescale, with each layer's output divided by a constant so that its scales are about 1
    init_batch_norm: Literal["identity", "preserve", "rescale", "normalize"] = "identity"
    preprocessing: Literal["auto", "torch", "caffe", "raw"] = "auto"  # pixel normalization; auto: as the weights expect
    # stages not to train, BatchNorm included: "encoder", or N for stages 1 to N
    freeze: Annotated[str, arg(metavar="STAGES")] = "none"

    # training
    epochs: int = field(default=100, metadata=OVERRIDE)  # passes over the training split
    steps: int = field(default=0, metadata=OVERRIDE)  # train for this many optimizer steps; 0: use --epochs
    batch_size_per_device: int = field(default=4, metadata=FREE)  # images per device and forward pass
    # batches per optimizer step; their gradients are summed
    grad_accum_steps: int = field(default=1, metadata=OVERRIDE)
    # weighted sum of losses, such as "ce + 0.5*dice"; losses and parameters: ce(smoothing=0),
    # focal(gamma=2), ohem(threshold=0.7, keep=0.0625), dice, tversky(alpha=0.3, beta=0.7), lovasz
    loss: Annotated[str, arg(metavar="FORMULA")] = field(default="ce", metadata=OVERRIDE)
    # SGD with momentum (L2 decay); AdamW, Lion or Adafactor (decoupled decay), which need smaller learning rates
    optimizer: Literal["sgd", "adamw", "lion", "adafactor"] = "sgd"
    nesterov: bool = field(default=False, metadata=OVERRIDE)  # Nesterov's momentum, for SGD
    clip_gradients: float = 0.0  # clip gradients to this global norm, such as 5; 0: off
    learning_rate: float = field(default=1e-3, metadata=OVERRIDE)  # peak learning rate
    encoder_lr_mult: float = 1.0  # learning-rate multiplier of the encoder's parameters
    # learning-rate multipliers, such as encoder=0.1 head=10, of encoder, decoder, head, kernel and bias (of
    # convolutions), scale and shift (of BatchNorm); if several apply to a parameter, they are multiplied
    lr_mult: Annotated[tuple[str, ...], arg(metavar="PART=FACTOR")] = ()
    # learning-rate schedule, updated every step; one-cycle rises for 30 % of the steps; plateau drops when the
    # training loss of an epoch stops improving
    schedule: Literal["constant", "step", "poly", "cosine", "one-cycle", "plateau"] = field(
        default="constant", metadata=OVERRIDE
    )
    warmup_epochs: float = field(default=0.0, metadata=OVERRIDE)  # epochs of linear warmup; one-cycle: of its rise
    step_epochs: int = field(default=30, metadata=OVERRIDE)  # schedule step: epochs between drops
    step_factor: float = field(default=0.1, metadata=OVERRIDE)  # schedules step and plateau: factor of each drop
    plateau_patience: int = field(default=5, metadata=OVERRIDE)  # schedule plateau: epochs without improvement to wait
    poly_power: float = field(default=0.9, metadata=OVERRIDE)  # schedule poly: exponent
    momentum: float = field(default=0.9, metadata=OVERRIDE)  # momentum of SGD; beta1 of AdamW and Lion
    weight_decay: float = field(default=5e-4, metadata=OVERRIDE)  # L2 penalty on convolution kernels
    decay_scale: bool = field(default=False, metadata=OVERRIDE)  # decay BatchNorm's scale too, as Caffe does
    decay_shift: bool = field(default=False, metadata=OVERRIDE)  # decay BatchNorm's shift too, as MATLAB does
    bias_lr_mult: float = 1.0  # learning-rate multiplier of convolution biases; Caffe uses 2
    ema_decay: float = 0.0  # decay of the exponential moving average (EMA) of the parameters, such as 0.99; 0: off
    # class balancing of the loss: a rule (none, matlab, auto-present, auto-global, auto-sqrt, caffe), one weight per
    # class, or NAME=WEIGHT for some classes, such as car=2
    class_weights: ClassWeights = field(default="matlab", metadata=OVERRIDE)
    seed: int = 0  # random seed of initial weights, image order, augmentation and dropout
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # dtype of activations

    # devices and input
    devices: NumDevices = field(default="all", metadata=FREE)  # number of devices to train on, or "all"
    fake_devices: int = field(default=0, metadata=FREE)  # split the CPU into this many devices, for testing
    # host: tf.data pipeline; device: dataset kept in device memory; auto: device if it fits
    input: Literal["auto", "host", "device"] = field(default="auto", metadata=FREE)
    # optimizer steps per dispatch, with --input device; 0: on GPUs and TPUs a divisor of the epoch, at most 16
    steps_per_dispatch: int = field(default=0, metadata=FREE)
    # how to map a step over devices; results are bit-identical
    mapping: Literal["pmap", "shard_map"] = field(default="pmap", metadata=FREE)
    half_gradients: bool = field(default=False, metadata=OVERRIDE)  # all-reduce gradients in 16 bits
    # make GPU runs bit-reproducible on the same machine; slower. CPU runs always are
    deterministic: bool = field(default=False, metadata=FREE)

    # several hosts; SLURM, Open MPI, Kubernetes (with the extra k8s) and TPU pods are detected

    # host:port of process 0, if no cluster is detected
    coordinator: Annotated[str, arg(metavar="HOST:PORT")] = field(default="", metadata=OF_THIS_START)
    process_id: int = field(default=-1, metadata=OF_THIS_START)  # id of this process, from 0; with --coordinator
    num_processes: int = field(default=0, metadata=OF_THIS_START)  # number of processes; with --coordinator
    heartbeat: int = field(default=30, metadata=FREE)  # seconds without heartbeat after which a process counts as lost

    # the run
    run: RunFolder = field(default="", metadata=OF_THIS_START)  # run folder; default: the next free runs/NAME-NUMBER
    # resume --run from its last checkpoint; bit-identical on CPUs, and on GPUs with --deterministic
    resume: bool = field(default=False, metadata=OF_THIS_START)
    override: bool = field(default=False, metadata=OF_THIS_START)  # resume with changed settings, and log the changes
    # learning-rate range test: train 150 steps with growing rates, plot the loss, suggest a rate; creates no run
    find_lr: bool = field(default=False, metadata=OF_THIS_START)
    max_steps: int = field(default=0, metadata=OF_THIS_START)  # save and stop after this many steps in total; 0: off
    evaluate_every: int = field(default=1, metadata=FREE)  # epochs between evaluations; 0: twenty in total
    checkpoint_every: int = field(default=1, metadata=FREE)  # epochs between checkpoints
    keep_checkpoints: int = field(default=2, metadata=FREE)  # number of newest checkpoints to keep, besides the best
    on_disk_full: Literal["stop", "wait"] = field(default="stop", metadata=FREE)  # wait: retry until space is freed
    # checkpoint that result.json scores
    result_checkpoint: Literal["best", "last"] = field(default="best", metadata=OVERRIDE)
    # stop after this many evaluations in a row without a better --best-metric; 0: off
    patience: int = field(default=0, metadata=OVERRIDE)
    # metric that selects the best checkpoint
    best_metric: Literal["miou", "global_accuracy"] = field(default="miou", metadata=OVERRIDE)

    # weight averaging and logs

    # stochastic weight averaging (SWA): train the last N epochs at a constant rate, and score the mean of the weights
    # after each of them, with recomputed BatchNorm statistics (--batch-norm recompute --result-checkpoint last); 0: off
    swa_epochs: int = 0
    swa_learning_rate: float = field(default=0.0, metadata=OVERRIDE)  # rate of --swa-epochs; 0: the rate at their start
    log_norms: bool = field(default=False, metadata=FREE)  # log the norms of the gradients and of the weights
    # write a jax.profiler trace of N steps, after the first two dispatches, to RUN/profile
    profile: int = field(default=0, metadata=OF_THIS_START)
    logger: Loggers = field(default=(), metadata=OF_THIS_START)  # also log to wandb, mlflow or both
    # also copy checkpoints and the finished run to s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; --run stays a local folder
    upload: Annotated[str, arg(metavar="ADDRESS")] = field(default="", metadata=OF_THIS_START)
    own: Given = field(default=(), metadata=OVERRIDE)  # objects given from Python: model=, loss=, optimizer=

    def __post_init__(self):
        """Validate the fields, before anything is compiled.

        Raises:
          UserError: If a value is invalid; the message names the flag, its range and the value.
        """
        check_ranges(self)
        check_fields(self, MAX_STAGES)
        check_network_name(self.network)
        given_weights(self.class_weights)
        check_multipliers(self.lr_mult)

    @property
    def has_average(self) -> bool:
        """Whether averaged variables (EMA or SWA) are maintained and scored."""
        return self.ema_decay > 0 or self.swa_epochs > 0

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the number of optimizer steps of the whole run."""
        return self.steps or self.epochs * steps_per_epoch

    @property
    def train_size(self) -> tuple[int, int]:
        """Height and width of the images that the network is trained on."""
        return self.image_size if self.crop == (0, 0) else self.crop

    @property
    def has_custom_network(self) -> bool:
        """Whether the network may be a custom one, with any number of parameters."""
        return bool(self.own) or ":" in self.network

    @property
    def num_stages(self) -> int:
        """Number of encoder stages: `depth`, at most the length of `stage_convolutions` or `stage_channels` if set."""
        given = len(self.stage_convolutions or self.stage_channels)
        return min(self.depth, given) if given else self.depth

    @property
    def frozen_stages(self) -> int:
        """Number of frozen encoder stages, counted from the first."""
        if self.freeze == "encoder":
            return self.num_stages
        return 0 if self.freeze == "none" else int(self.freeze)

    def to_toml(self) -> str:
        """Return the config as TOML: the format version and every field except those marked OF_THIS_START."""
        return toml_of({"format_version": FORMAT_VERSION} | self._fields(("free", "override", "refused")))

    def experiment(self) -> dict[str, Any]:
        """Return the experiment's fields that differ from the defaults, JSON-serializable; stored in checkpoints.

        Defaults are left out so that a field added later does not change the experiment of older runs.
        """
        defaults = Config()._fields(("override", "refused"))
        return {name: value for name, value in self._fields(("override", "refused")).items() if value != defaults[name]}

    def hash(self) -> str:
        """Return the sha256 of `experiment`; it must match to resume a run."""
        return hash_of(self.experiment())

    def _fields(self, rules: tuple[str, ...]) -> dict[str, Any]:
        names = (item.name for item in dataclasses.fields(self) if on_resume(item.name) in rules)
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in names}


def on_resume(name: str) -> str:
    """Return whether a field may change on resume: "free", "of this start", "override" or "refused"."""
    return Config.__dataclass_fields__[name].metadata.get("on_resume", "refused")

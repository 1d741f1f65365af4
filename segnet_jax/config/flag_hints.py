"""Flag names of other tools, and the equivalent flags of these commands."""

import difflib
from collections.abc import Iterable

HABITS = {
    **dict.fromkeys(("lr", "learning-rate-init", "base-lr", "lr0", "initial-learning-rate"), ("--learning-rate X",)),
    **dict.fromkeys(("batch-size", "batch", "bs", "batchsize", "mini-batch-size"), ("--batch-size-per-device N",)),
    **dict.fromkeys(("epoch", "num-epochs", "n-epochs", "max-epochs", "nepochs", "e"), ("--epochs N",)),
    **dict.fromkeys(("iters", "iterations", "max-iter", "max-iters", "num-steps", "max-steps"), ("--steps N",)),
    **dict.fromkeys(("gpus", "num-gpus", "ngpus", "gpu", "n-gpu", "num-devices", "device"), ("--devices N",)),
    **dict.fromkeys(
        ("size", "img-size", "imgsz", "input-size", "resize", "resolution"), ("--image-size HEIGHT WIDTH",)
    ),
    **dict.fromkeys(("crop-size", "random-crop", "randcrop"), ("--crop HEIGHT WIDTH",)),
    **dict.fromkeys(
        ("dataset", "data-dir", "data-path", "data-root", "dataroot", "root", "input-dir", "train-dir"),
        ("--data FOLDER",),
    ),
    **dict.fromkeys(
        ("output-dir", "out-dir", "outdir", "o", "save-dir", "save", "log-dir", "logdir", "work-dir", "name"),
        ("--out FOLDER", "--out FILE", "--run RUN"),
    ),
    **dict.fromkeys(("model", "arch", "architecture", "net"), ("--network NAME",)),
    **dict.fromkeys(("backbone", "encoder-name"), ("--encoder NAME",)),
    **dict.fromkeys(
        ("pretrained", "weights", "ckpt", "load", "load-from", "finetune", "checkpoint", "encoder-weights"),
        ("--checkpoint {result,newest,best}", "--init WEIGHTS"),
    ),
    **dict.fromkeys(("resume-from", "continue"), ("--run RUN --resume",)),
    **dict.fromkeys(("fp16", "half", "amp", "mixed-precision", "use-amp"), ("--precision float16",)),
    **dict.fromkeys(("bf16", "bfloat16", "dtype"), ("--precision bfloat16",)),
    **dict.fromkeys(("wd", "l2", "decay", "l2-regularization"), ("--weight-decay X",)),
    **dict.fromkeys(("scheduler", "lr-schedule", "lr-scheduler", "lr-policy", "sched"), ("--schedule NAME",)),
    **dict.fromkeys(("warmup", "warmup-steps", "warmup-iters"), ("--warmup-epochs X",)),
    **dict.fromkeys(("opt", "optim", "solver"), ("--optimizer NAME",)),
    **dict.fromkeys(("grad-clip", "clip-grad", "clip-grad-norm", "max-norm"), ("--clip-gradients X",)),
    **dict.fromkeys(("early-stopping", "early-stop"), ("--patience N",)),
    **dict.fromkeys(("criterion", "loss-fn", "loss-function"), ("--loss FORMULA",)),
    **dict.fromkeys(("lr-finder", "lr-find"), ("--find-lr",)),
    **dict.fromkeys(("swa", "swa-start", "stochastic-weight-averaging"), ("--swa-epochs N",)),
    **dict.fromkeys(("wandb", "mlflow", "use-wandb", "report-to", "log-with"), ("--logger NAME",)),
    **dict.fromkeys(("profiler", "trace"), ("--profile N",)),
    **dict.fromkeys(("ema", "ema-rate", "model-ema"), ("--ema-decay 0.99",)),
    **dict.fromkeys(
        ("accumulate", "accum-iter", "gradient-accumulation-steps", "grad-accum", "iter-size"),
        ("--grad-accum-steps N",),
    ),
    **dict.fromkeys(("val-split", "validation-split", "valid-fraction", "val-size"), ("--val-fraction X",)),
    **dict.fromkeys(("eval-every", "eval-freq", "val-interval", "eval-interval"), ("--evaluate-every N",)),
    **dict.fromkeys(("save-every", "save-freq", "save-interval", "save-period"), ("--checkpoint-every N",)),
    **dict.fromkeys(("class-weight", "class-balancing", "balance"), ("--class-weights RULE",)),
    **dict.fromkeys(("recipe", "preset", "p"), ("--protocol NAME",)),
    **dict.fromkeys(("cfg", "config-file", "c", "yaml"), ("--config FILE",)),
    **dict.fromkeys(("random-seed", "manual-seed", "s"), ("--seed N",)),
    **dict.fromkeys(("hflip", "fliplr", "horizontal-flip", "mirror"), ("--flip",)),
    **dict.fromkeys(("vflip", "flipud", "flip-vertical"), ("--vertical-flip",)),
    **dict.fromkeys(("rotation", "degrees", "random-rotation"), ("--rotate DEGREES",)),
    **dict.fromkeys(("classmix", "cutmix", "mixup", "copy-paste", "mosaic"), ("--class-mix X",)),
    **dict.fromkeys(("gaussian-blur", "random-blur"), ("--blur X",)),
    **dict.fromkeys(("augmentation", "augmentations", "transforms"), ("--augment MODULE:FUNCTION",)),
    **dict.fromkeys(("color-jitter", "jitter"), ("--color X",)),
    **dict.fromkeys(("random-scale", "scale-range", "multiscale"), ("--scale MIN MAX",)),
    **dict.fromkeys(("freeze-encoder", "freeze-backbone"), ("--freeze encoder",)),
    **dict.fromkeys(("patch-size", "tile-size", "window"), ("--tile HEIGHT WIDTH",)),
    **dict.fromkeys(("flip-test", "aug-test", "test-time-augmentation"), ("--tta flip",)),
    **dict.fromkeys(("kfold", "k-folds", "n-splits", "num-folds", "cross-validation"), ("--folds N",)),
    **dict.fromkeys(("masks", "gt", "mask-dir", "labels-dir"), ("--labels FOLDER",)),
    "b": ("--batch-size-per-device N",),
    "d": ("--data FOLDER", "--devices N"),
    "j": ("--json FILE",),
}
"""Name in other tools -> equivalent flags; the first one that the command has is suggested."""

NOT_NEEDED = {
    **dict.fromkeys(
        ("workers", "num-workers", "n-workers", "threads", "nproc"),
        "images are decoded once and cached, so there are no loader workers to set",
    ),
    **dict.fromkeys(
        ("num-classes", "n-classes", "nclass", "nc"), "the number of classes follows from the dataset's labels"
    ),
    **dict.fromkeys(
        ("cuda", "no-cuda", "cpu", "use-gpu"), "JAX uses a GPU if it finds one; set JAX_PLATFORMS=cpu to avoid it"
    ),
    **dict.fromkeys(
        ("tensorboard", "tb", "tensorboard-dir"), "every run writes TensorBoard events: tensorboard --logdir runs"
    ),
    **dict.fromkeys(("ignore-index", "ignore-label"), "--map OLD=255 reads a label value as void, which is ignored"),
}
"""Name in other tools of a flag without equivalent -> the reason."""


def suggestion(option: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown flag, such as "did you mean --learning-rate X?", or "".

    Args:
      option: the unknown flag, such as "--lr".
      known: the command's flags, such as "--learning-rate".
    """
    known = set(known)
    word = option.lstrip("-").replace("_", "-").lower()
    for meant in HABITS.get(word, ()):
        if meant.split()[0] in known:
            return f"did you mean {meant}?"
    if word in NOT_NEEDED:
        return NOT_NEEDED[word]
    near = difflib.get_close_matches(f"--{word}", known, n=1)
    return f"nearest: {near[0]}" if near else ""

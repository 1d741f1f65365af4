"""An attack, and the command line of each command on a run."""

import pathlib
from dataclasses import dataclass

from attack_pictures import SAMPLE, Prepare

TRAIN = [
    *("--data", "synthetic", "--scenes", "12", "4", "--image-size", "24", "32", "--init", "none", "--devices", "1"),
    *("--depth", "1", "--width", "0.0625", "--class-weights", "none", "--batch-size-per-device", "4", "--epochs", "2"),
]
OWN = ["--image-size", "24", "32", "--init", "none", "--devices", "1", "--batch-size-per-device", "1"]
DEEP_IMAGES = ["--channels", "4", "--image-bits", "16", "--color", "0"]
OWN += ["--depth", "1", "--width", "0.0625", "--class-weights", "none", "--val-fraction", "0.4", "--epochs", "1"]


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
      kind: the property that is attacked.
      name: description of the attack.
      command: key of `words_of`.
      prepare: changes the copy of the run and the call, see `attack_inputs`.
      codes: accepted exit codes.
    """

    kind: str
    name: str
    command: str
    prepare: Prepare
    codes: tuple[int, ...] = (2,)


def words_of(command: str, run: pathlib.Path, folder: pathlib.Path, given: dict) -> list[str]:
    """Return the command line of a command on a run."""
    data, made = str(given.get("data", SAMPLE)), str(given.get("file", ""))
    base = {
        "train": ["train", *TRAIN, "--run", run, "--resume"],
        "begin": ["train", *OWN, "--data", data, "--run", folder / "new"],
        "check": ["check", *OWN, "--data", data],
        "init": ["train", *TRAIN[:8], *TRAIN[10:], "--run", folder / "new", "--width", "1", "--init", made],
        "init-run": ["train", *TRAIN[:8], *TRAIN[10:], "--run", folder / "new", "--init", run],
        "evaluate": ["evaluate", run, "--no-boundary"],
        "predict": ["predict", run, given.get("image", SAMPLE / "val" / "val_00000.png"), "--out", folder / "out"],
        "export": ["export", run, "--format", "safetensors", "--images", "1"],
        "report": ["report", run],
        "doctor": ["doctor", data],
        "convert": ["convert", made, "--run", folder / "new"],
        "prepare": ["prepare", "camvid", "--tutorial", data, "--out", folder / "prepared"],
        "prepare-vgg": ["prepare", "vgg16"],
        "benchmark": ["benchmark", "pooling", "--steps", "1", "--rounds", "1", "--image-size", "24", "32"],
        "measure": ["portability", "measure", "--run", run, "--precision", "float32", "--images", "1"],
        "lower": ["portability", "lower", "--run", run, "--platforms", "cpu"],
        "compare": ["portability", "report", made],
        # features of a later set
        "resume": ["train", "--run", run, "--resume"],
        "sweep": ["sweep", made, "--out", given.get("out", folder / "swept")],
        "folds": ["train", *TRAIN, "--folds", "2", "--run", given.get("out", folder / "cv")],
        "config": ["train", "--config", made, "--run", folder / "new"],
        "calibrate": ["evaluate", run, "--no-boundary", "--calibrate"],
        "csv": ["evaluate", run, "--no-boundary"],
        "ensemble": ["evaluate", run, folder / "other", "--no-boundary", "--tta", "flip"],
        "predict-both": ["predict", run, folder / "other", SAMPLE / "val" / "val_00000.png"],
        "profile": ["train", *TRAIN, "--run", run, "--resume", "--profile", "1"],
        "channels": ["train", *OWN, *DEEP_IMAGES, "--data", data, "--run", folder / "new"],
        "evaluate-export": ["evaluate", folder / "exported", "--data", SAMPLE, "--no-boundary"],
        "predict-export": ["predict", folder / "exported", SAMPLE / "val" / "val_00000.png", "--out", folder / "out"],
        "init-export": ["train", *TRAIN[:8], *TRAIN[10:], "--run", folder / "new", "--init", folder / "exported"],
        "bucket": ["train", *OWN, "--data", "s3://street/data", "--run", folder / "new"],
        "upload": ["train", *TRAIN, "--run", folder / "new"],
    }
    more = {"measure": ["--json", folder / "m.json"], "lower": ["--out", folder / "lowered"]}
    more |= {"csv": ["--csv", folder / "images.csv"], "predict-both": ["--out", folder / "out"]}
    flags = given.get("flags", more.get(command, ()))
    return [str(word) for word in [*base[command], *flags]]

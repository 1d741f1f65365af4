"""Make run folders of untrained networks with random parameters and statistics, saved as in training."""

import dataclasses

from random_variables import random_variables

from segnet_jax.config.fields import Config
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.distributed.data_parallel import choose_devices, replicate
from segnet_jax.training import build_model
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.state import create_state

CONFIG = Config(
    data="synthetic",
    scenes=(8, 9),
    image_size=(24, 32),
    init="none",
    depth=1,
    width=1 / 16,
    devices="1",
    class_weights="none",
)
PREPROCESSING = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}


def make_run(folder, classes=CAMVID, changed_meta=None, **settings):
    """Make a run on rendered scenes, with its best checkpoint at step 7 and its newest at step 8.

    Args:
      folder: run folder.
      classes: class table of the run.
      changed_meta: changed entries of the checkpoints' metadata.
      **settings: changed fields of the config.
    """
    config = dataclasses.replace(CONFIG, **settings)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(config.to_toml())
    devices = choose_devices("1")
    model = build_model.build_model(config, len(classes), "float32")
    optimizer, _ = build_model.build_optimizer(config, model, steps_per_epoch=1)
    meta = {
        "classes": list(classes.names),
        "colors": list(map(list, classes.colors)),
        "preprocessing": {name: list(values) for name, values in PREPROCESSING.items()},
        "precision": "float32",
        "class_weights": [1.0] * len(classes),
        "last": None,
        "best": None,
        **(changed_meta or {}),
    }
    with Checkpoints(folder / "checkpoints", devices) as checkpoints:
        for which, step in (("best", 7), ("newest", 8)):
            state = create_state(random_variables(model, step), optimizer, "float32")
            if config.has_average:
                state = state.replace(ema=random_variables(model, step + 100))
            checkpoints.save(which, step, replicate(state, devices), meta | {"step": step})
        checkpoints.wait()
    return folder

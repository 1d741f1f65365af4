"""Uses of segnet_jax's types by another program: checked by pyright, never run."""

from pathlib import Path
from typing import assert_type

import jax
import numpy as np

import segnet_jax
from segnet_jax.nn import Preprocessing, SegNet, SegNetBasic, max_pool_with_code, normalize, unpool


def use(image: np.ndarray, key: jax.Array) -> None:
    run = segnet_jax.train(data="photos", image_size=(240, 320), flip=False)
    assert_type(run, segnet_jax.Run)
    assert_type(run.folder, Path)
    scores = segnet_jax.evaluate("runs/photos-1", split="val")
    assert_type(scores, segnet_jax.Scores)
    assert_type(scores.miou, float)
    network = segnet_jax.load("runs/photos-1", checkpoint="best")
    assert_type(network, segnet_jax.TrainedNetwork)
    network.predict("street.jpg")
    network.predict([image, image], size=(240, 320))
    assert_type(run.load(), segnet_jax.TrainedNetwork)

    model = SegNet(num_classes=11, width=0.25)
    basic = SegNetBasic(num_classes=11)
    for each in (model, basic):
        variables = each.init(key, image, train=False)
        each.apply(variables, image, train=False)
    values, code = max_pool_with_code(key)
    unpool(values, code, 4, 4)
    normalize(key, Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))

"""Score a run as Caffe does without the pass over the training set, the suspected cause of many reports of 0.10 mIoU.

python experiments/ablation/other_statistics.py RUN --data DIR --json FILE

Caffe's BN layer keeps no running average. Before that pass it uses either each test batch's own statistics (bn_mode
LEARN, here of one image at a time) or no statistics (bn_mode INFERENCE: only scale * x + shift). The scores are written
in the format of `evaluate`, under "batch_norm": "own" and "none".
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax.config import files
from segnet_jax.metrics.confusion import confusion_matrix
from segnet_jax.nn.preprocessing import normalize
from segnet_jax.runs.load_dataset import decode, open_data
from segnet_jax.runs.result import by_statistics
from segnet_jax.training import checkpoint_folders
from segnet_jax.training.choose_devices import start_devices
from segnet_jax.training.restore_network import restore


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", required=True)
    parser.add_argument("--json", required=True)
    given = parser.parse_args()
    config = dataclasses.replace(files.read_run(given.run), data=given.data, devices="1")
    devices, precision = start_devices(config)
    restored = restore(given.run, config, "newest", devices, precision, batch_norm="running")
    model, preprocessing = restored.model.clone(sync_axis=None), checkpoint_folders.preprocessing_of(restored.meta)
    without = model.clone(batch_norm_epsilon=0.0)
    ones = jax.tree_util.tree_map_with_path(
        lambda path, array: jnp.full_like(array, path[-1].key == "var"), restored.variables["batch_stats"]
    )

    @jax.jit
    def label(variables, image):
        image = normalize(image, preprocessing, model.dtype)
        own, _ = model.apply(variables, image, train=True, mutable=["batch_stats"])
        none = without.apply(variables | {"batch_stats": ones}, image, train=False)
        return [jnp.argmax(logits, axis=-1).astype(jnp.uint8) for logits in (own, none)]

    samples = decode(open_data(config).splits["val"], config, "reading val images")
    counts = {"own": 0, "none": 0}
    for index in range(len(samples)):
        image, truth = samples.read(index)
        for name, prediction in zip(counts, label(restored.variables, image[None]), strict=True):
            counts[name] = counts[name] + np.asarray(confusion_matrix(truth[None], prediction, model.num_classes))
    with open(given.json, "w", encoding="utf-8") as file:
        json.dump(by_statistics(counts), file, indent=2)


if __name__ == "__main__":
    main()

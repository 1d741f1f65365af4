"""Monte Carlo dropout on real validation frames: convergence of the mean, and how well uncertainty predicts errors.

python experiments/bayesian/measure.py RUN --data DIR --machine "2 cores of an AMD EPYC, no GPU"

RUN is a run of any network with dropout; DIR is CamVid in the tutorial's layout. Writes `samples.json` and
`samples.png` next to this file.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import segnet_jax
from segnet_jax.config import files
from segnet_jax.inference.sampling import UNCERTAINTIES, image_keys, maxima, normalized, sample
from segnet_jax.metrics.calibration import COVERAGES, accuracy_over_coverage, calibration, count_in_bins
from segnet_jax.metrics.confusion import confusion_matrix, scores
from segnet_jax.metrics.uncertainty import entropy, uncertainty
from segnet_jax.reporting.environment import commit, versions
from segnet_jax.runs.load_dataset import decode, open_data
from segnet_jax.system.files import atomic_write_json, plain

HERE = pathlib.Path(__file__).resolve().parent
GROUPS = (1, 2, 4, 8, 16)
"""Numbers of samples per mean; the variance between means should fall as one over the number."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", required=True)
    parser.add_argument("--machine", required=True, help="description of the machine")
    parser.add_argument("--samples", type=int, default=64, help="samples per frame, a multiple of 16")
    parser.add_argument("--frames", type=int, default=101, help="maximum number of frames, evenly spaced")
    parser.add_argument("--checkpoint", default="result", choices=["result", "best", "newest"])
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "samples.json")
    given = parser.parse_args()

    network = segnet_jax.load(given.run, given.checkpoint)
    config = dataclasses.replace(files.read_run(given.run), data=given.data)
    split = open_data(config).splits["val"]
    samples = decode(split, config, "reading frames")
    frames = sorted({round(place) for place in np.linspace(0, len(samples) - 1, given.frames)})
    look = jax.jit(partial(_look, network=network, num_samples=given.samples))

    total, variances, start = None, [], time.monotonic()
    for frame in frames:
        image, label = samples.read(frame)
        counts, variance = look(network.variables, image[None], label[None], jnp.array([frame]))
        counts = jax.tree.map(lambda each: np.asarray(each, np.int64), counts)
        total = counts if total is None else jax.tree.map(np.add, total, counts)
        variances.append(np.asarray(variance))
        print(f"frame {frame}, {time.monotonic() - start:.0f} s", file=sys.stderr)

    variance = np.mean(variances, axis=0)
    results = {
        "command": f"python experiments/bayesian/measure.py RUN --data DIR --samples {given.samples} "
        f"--frames {given.frames} --checkpoint {given.checkpoint} --machine ...",
        "machine": given.machine,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "versions": versions(),
        "config": {item: getattr(config, item) for item in ("network", "width", "image_size", "dropout")},
        "step": network.step,
        "frames": f"{len(frames)} of {len(samples)} val frames",
        "num_samples": given.samples,
        "variance_of_the_mean": {
            str(size): {"variance": value, "times_samples_by_that_of_one": value * size / variance[0]}
            for size, value in zip(GROUPS, variance.tolist(), strict=True)
        },
        "mean": _scores(total["mean"], UNCERTAINTIES),
        "plain": _scores(total["plain"], ("entropy",)),
    }
    atomic_write_json(given.out, plain(results))
    _draw(results, given.out.with_suffix(".png"))
    print(json.dumps(plain({name: results[name] for name in ("variance_of_the_mean", "mean", "plain")}), indent=2))


def _look(variables, image, label, index, *, network, num_samples):
    """Return the counts of one frame, and the variance between means of samples for each size of `GROUPS`."""
    num_classes = len(network.classes)
    drawn = sample(partial(network.forward, variables), image, image_keys(0, index, num_samples))
    found, once = uncertainty(drawn), jax.nn.softmax(network.forward(variables, image), axis=-1)

    def counted(probabilities, shares):
        prediction = probabilities.argmax(axis=-1).astype(jnp.uint8)
        by = {name: count_in_bins(label, prediction, share, 1.0) for name, share in shares.items()}
        by["confidence"] = count_in_bins(label, prediction, probabilities.max(axis=-1), 1.0)
        return {"confusion": confusion_matrix(label, prediction, num_classes), "by": by}

    shares = dict(zip(UNCERTAINTIES, jnp.moveaxis(normalized(found, num_classes), -1, 0), strict=True))
    plain_shares = {"entropy": entropy(once) / maxima(num_classes)["entropy"]}
    means = (drawn.reshape(num_samples // size, size, *drawn.shape[1:]).mean(axis=1) for size in GROUPS)
    variance = jnp.stack([group.var(axis=0, ddof=1).mean() for group in means])
    return {"mean": counted(found.mean, shares), "plain": counted(once, plain_shares)}, variance


def _scores(counts, measures):
    found, by = scores(counts["confusion"]), counts["by"]
    results = {"miou": found.miou, "global_accuracy": found.global_accuracy}
    results["calibration_error"] = calibration(by["confidence"]).error
    results["error_over_coverage"] = {}
    for name in measures:
        kept = accuracy_over_coverage(by[name])
        errors = {f"{coverage:g}": 1 - kept[coverage] for coverage in COVERAGES}
        falls = all(later < earlier for earlier, later in zip([*errors.values()], [*errors.values()][1:], strict=False))
        results["error_over_coverage"][name] = {"errors": errors, "falls_at_every_step": falls}
    return results


def _draw(results, path: pathlib.Path) -> None:
    """Plot the two results."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    variance = [row["variance"] for row in results["variance_of_the_mean"].values()]
    left.loglog(GROUPS, variance, "o", label="measured")
    left.loglog(GROUPS, [variance[0] / size for size in GROUPS], "-", label="one sample's, by T")
    left.set(xlabel="samples T", ylabel="variance of the mean prediction")
    for which, style in (("mean", "-"), ("plain", "--")):
        for name, found in results[which]["error_over_coverage"].items():
            label = name if which == "mean" else "entropy, without dropout"
            right.plot([100 * x for x in COVERAGES], [100 * y for y in found["errors"].values()], style, label=label)
    right.set(xlabel="pixels kept, the surest, %", ylabel="of these wrong, %")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()

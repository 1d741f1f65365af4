"""The overview at the top of a report: date, duration, data and recipe."""

import pathlib

from segnet_jax.reporting.page import wording
from segnet_jax.reporting.page.run_summary import RunSummary, integer, text


def overview(run: RunSummary) -> list[tuple[str, str]]:
    """Return (name, value) pairs for a run's date, duration, data and recipe, leaving out unknown values."""
    config = run.config
    entries = [("started", wording.date_words(run.started)), ("took", wording.duration_words(run.seconds))]
    dataset = text(run.result.get("dataset") or run.about.get("dataset") or "", 60)
    num_images = run.about.get("num_images")
    count = integer(num_images.get("train")) if isinstance(num_images, dict) else None
    entries += [("data", wording.dataset_words(dataset)), ("training images", f"{count:,}" if count else "")]
    if config is not None:
        height, width = config.image_size
        start = text(pathlib.PurePath(config.init).name, 60)  # pages must not name local folders
        entries += [
            ("recipe", text(config.protocol, 60) or "custom settings"),
            ("learning rate", f"{config.learning_rate:g}, {config.schedule}"),
            ("images per step", _batch(run)),
            (
                "image size",
                f"{height}x{width}" + (f", crops of {crop[0]}x{crop[1]}" if (crop := config.crop)[0] else ""),
            ),
            ("length", _length(run)),
            ("initial weights", wording.value_words(start, "init")),
        ]
    return [(name, value) for name, value in entries if value]


def _batch(run: RunSummary) -> str:
    """Return the images per step, over all devices if that is known."""
    differences = run.result.get("differences")
    both = differences.get("global_batch_size") if isinstance(differences, dict) else None
    stored = integer(both[-1]) if isinstance(both, list) and both else None
    per_device = run.config.batch_size_per_device * run.config.grad_accum_steps
    return f"{stored or per_device:,}"


def _length(run: RunSummary) -> str:
    """Return the planned length in epochs, or in steps if the config has steps."""
    steps = run.config.steps or integer(run.result.get("num_steps"))
    if run.config.steps:
        return f"{steps:,} steps"
    return f"{run.config.epochs:,} epochs" + (f", {steps:,} steps" if steps else "")

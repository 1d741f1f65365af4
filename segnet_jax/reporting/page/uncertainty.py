"""Results of Monte Carlo dropout for the report: scores with and without it, and uncertainty maps."""

from typing import Any

from segnet_jax.reporting.page.run_summary import RunSummary, base64_text, integer, number, text

_ROWS = (
    ("mIoU", ("miou",)),
    ("global accuracy", ("global_accuracy",)),
    ("calibration error", ("calibration_error",)),
    ("accuracy on the 90 % most certain pixels", ("accuracy_over_coverage", "entropy", "0.9")),
    ("accuracy on the 50 % most certain pixels", ("accuracy_over_coverage", "entropy", "0.5")),
)
_PICTURES = ("image", "prediction", "entropy", "information", "variance")


def uncertainty(run: RunSummary) -> dict[str, Any]:
    """Return the checked content of `uncertainty.json`, which `evaluate --samples` wrote; {} without this file.

    Returns:
      "samples", the number of samples; "images", a description of the images; "rows", each (name, score of the mean
      over the samples, score without dropout); and "pictures" as base64.
    """
    content = run.uncertainty
    if not content:
        return {}
    rows = [(name, _number(content.get("mean"), path), _number(content.get("plain"), path)) for name, path in _ROWS]
    pictures = content.get("pictures") if isinstance(content.get("pictures"), list) else []
    checked = [
        {"name": text(each.get("name", ""))} | {kind: base64_text(each.get(kind)) for kind in _PICTURES}
        for each in pictures[:6]
        if isinstance(each, dict)
    ]
    num_images = integer(content.get("num_images"))
    return {
        "samples": integer(content.get("num_samples")),
        "images": f"{num_images:,} {text(content.get('split', ''), 20)} images" if num_images else "the images",
        "rows": [row for row in rows if row[1] is not None],
        "pictures": [each for each in checked if each["entropy"]],
    }


def _number(value: Any, path: tuple[str, ...]) -> float | None:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return number(value)

"""What a report tells of samples under dropout: scores beside those without it, and maps of some images."""

from typing import Any

from segnet_jax.reporting.page.record import Record, base64, number, text, whole

_ROWS = (
    ("mIoU", ("miou",)),
    ("global accuracy", ("global_accuracy",)),
    ("calibration error", ("calibration_error",)),
    ("right of the surest 90 %", ("accuracy_over_coverage", "entropy", "0.9")),
    ("right of the surest 50 %", ("accuracy_over_coverage", "entropy", "0.5")),
)
_PICTURES = ("image", "prediction", "entropy", "information", "variance")


def uncertainty_told(record: Record) -> dict[str, Any]:
    """What `evaluate --samples` has kept, made harmless; empty where there is none.

    Returns:
      "samples", "on" in words, "rows" of (name, of the mean of the samples, without dropout), and "pictures" as base64.
    """
    told = record.uncertainty
    if not told:
        return {}
    rows = [(name, _number(told.get("mean"), path), _number(told.get("plain"), path)) for name, path in _ROWS]
    pictures = told.get("pictures") if isinstance(told.get("pictures"), list) else []
    shown = [
        {"name": text(each.get("name", ""))} | {kind: base64(each.get(kind)) for kind in _PICTURES}
        for each in pictures[:6]
        if isinstance(each, dict)
    ]
    images = whole(told.get("num_images"))
    return {
        "samples": whole(told.get("num_samples")),
        "on": f"{images:,} {text(told.get('split', ''), 20)} images" if images else "the images",
        "rows": [row for row in rows if row[1] is not None],
        "pictures": [each for each in shown if each["entropy"]],
    }


def _number(value: Any, path: tuple[str, ...]) -> float | None:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return number(value)

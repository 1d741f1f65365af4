"""Segment an image with an exported ONNX file, with only onnxruntime, numpy and Pillow.

Example:  python segment.py network.onnx street.jpg overlay.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main() -> None:
    """Write an overlay of the predicted classes and print the fraction of each class."""
    network_file, image_file, output_file = sys.argv[1:]
    session = onnxruntime.InferenceSession(network_file, providers=onnxruntime.get_available_providers())
    about = session.get_modelmeta().custom_metadata_map
    names, colors, network = (json.loads(about[key]) for key in ("classes", "colors", "network"))
    height, width = fixed_size(session) or network["image_size"]

    image = Image.open(image_file).convert("RGB")
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    class_ids, _ = session.run(["prediction", "logits"], {"images": resized[None]})  # uint8 [1,H,W]

    painted = Image.fromarray(np.uint8(colors)[class_ids[0]]).resize(image.size, Image.Resampling.NEAREST)
    Image.blend(image, painted, 0.5).save(output_file)
    counts = np.bincount(class_ids.ravel(), minlength=len(names))
    for class_id in np.argsort(-counts, kind="stable"):
        if counts[class_id]:
            print(f"{100 * counts[class_id] / class_ids.size:5.1f} %  {names[class_id]}")


def fixed_size(session: onnxruntime.InferenceSession) -> tuple[int, int] | None:
    """Return height and width of a file exported with --size; None if it takes any size."""
    _, height, width, _ = session.get_inputs()[0].shape
    return (height, width) if isinstance(height, int) else None


if __name__ == "__main__":
    main()

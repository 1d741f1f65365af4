"""Class balancing by median frequency, by the rules that go under that name.

A weight is median(frequency) / frequency (Eigen & Fergus 2015, arXiv 1411.4734); the rules differ in the frequency.
"""

import numpy as np

CAFFE_CAMVID = (*(0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614),)
"""The eleven numbers printed in SegNet-Tutorial's prototxts. SignSymbol's 9.6446 does not follow from the published
labels, which give 3.85; the other ten agree within 17%."""


def present_frequency_weights(pixels: np.ndarray, image_pixels: np.ndarray) -> np.ndarray:
    """Weights each class by median frequency / its own, where frequency is its share of the images that contain it.

    Args:
      pixels: int64 [C], pixels of each class.
      image_pixels: int64 [C], all pixels of the images that contain the class.

    Returns:
      float32 [C], about 0.1 to 10; 0 for a class never seen.

    Source: Eigen & Fergus 2015; MATLAB's `ImagePixelCount`.
    """
    return _median_weights(pixels, image_pixels)


def global_frequency_weights(pixels: np.ndarray, total: int) -> np.ndarray:
    """Weights each class by median frequency / its own, where frequency is its share of all pixels.

    Args:
      pixels: int64 [C], pixels of each class.
      total: all pixels.

    Returns:
      float32 [C]; 0 for a class never seen.
    """
    return _median_weights(pixels, np.full_like(pixels, total))


def _median_weights(pixels: np.ndarray, image_pixels: np.ndarray) -> np.ndarray:
    if pixels.shape != image_pixels.shape:
        raise ValueError(f"pixels {pixels.shape} and image_pixels {image_pixels.shape} differ in shape")
    seen = pixels > 0
    frequency = pixels[seen] / image_pixels[seen]
    weights = np.zeros(pixels.shape, np.float32)
    weights[seen] = np.median(frequency) / frequency
    return weights

"""Caffe SegNet's layers in numpy and float64, written from their definitions, and the two networks built from them.

They follow caffe-segnet's layers at 344c113 and SegNet-Tutorial's prototxts and use no code of the package. Images are
BGR 0..255 [3,H,W]; masks are flat indices h * W + w into the pooled plane; the sizes of unpooled maps are set by hand.
"""

import numpy as np

FULL = ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))  # stage, convolutions
SIZES_360x480 = {5: (23, 30), 4: (45, 60), 3: (90, 120), 2: (180, 240), 1: (360, 480)}
"""Output sizes of the upsampling layers; the prototxts set only those of `upsample5` and `upsample4`."""
BASIC_SIZES_360x480 = {4: (45, 60), 3: (90, 120), 2: (180, 240), 1: (360, 480)}
"""Output sizes for SegNet-Basic: `upsample4` has scale 2 with `pad_out_h`, 2 * 23 - 1; the others have scale 2."""


def convolution(x, kernel, bias):
    """Convolve [C,H,W] with a kernel [O,C,k,k], k odd, padded with k

    2 zeros on each side.
    """
    outputs, _, side, _ = kernel.shape
    _, height, width = x.shape
    padded = np.pad(x, [(0, 0)] + [(side // 2, side // 2)] * 2)
    y = np.zeros((outputs, height * width)) + np.float64(bias)[:, None]
    for i in range(side):
        for j in range(side):
            window = padded[:, i : i + height, j : j + width].reshape(len(x), -1)
            y += np.float64(kernel[:, :, i, j]) @ window
    return y.reshape(outputs, height, width)


def batch_norm(x, scale, shift):
    """Apply the BN layer in INFERENCE mode."""
    return x * np.float64(scale).reshape(-1, 1, 1) + np.float64(shift).reshape(-1, 1, 1)


def max_pool(x):
    """Pool 2x2 windows with stride 2; return maxima and masks.

    The output has ceil((size - 2) / 2) + 1 windows per axis. A later cell wins only if it is larger.
    """
    channels, height, width = x.shape
    rows, columns = (-(-(size - 2) // 2) + 1 for size in (height, width))
    best, mask = np.full((channels, rows, columns), -np.inf), np.zeros((channels, rows, columns))
    for h in range(2):
        for w in range(2):
            cells = x[:, h::2, w::2]  # of the last windows, some reach beyond the map
            _, inside, across = cells.shape
            places = np.add.outer(width * np.arange(h, height, 2), np.arange(w, width, 2))
            larger = cells > best[:, :inside, :across]
            best[:, :inside, :across] = np.where(larger, cells, best[:, :inside, :across])
            mask[:, :inside, :across] = np.where(larger, places, mask[:, :inside, :across])
    return best, mask


def upsample(x, mask, size):
    """Return zeros with each value at its flat index."""
    y = np.zeros((len(x), size[0] * size[1]))
    for plane, values, places in zip(y, x, mask, strict=True):
        plane[places.astype(int).ravel()] = values.ravel()
    return y.reshape(len(x), *size)


def local_response(x, size=5, alpha=1e-4, beta=0.75):
    """Apply LRN across channels with k = 1.

    Each value is divided by (1 + alpha / size * sum of squares over the window) ** beta.
    """
    y = np.empty_like(x)
    for channel in range(len(x)):
        window = x[max(channel - size // 2, 0) : channel + size // 2 + 1]
        y[channel] = x[channel] * (1 + alpha / size * (window**2).sum(axis=0)) ** -beta
    return y


def relu(x):
    return np.maximum(x, 0)


def segnet(blobs, bgr, sizes):
    """Run `segnet_inference.prototxt`; return logits, float64 [classes,H,W].

    `sizes` maps a stage to the output size of its upsampling layer.
    """
    x, masks = np.float64(bgr), {}
    for stage, num_convolutions in FULL:
        for i in range(1, num_convolutions + 1):
            name = f"conv{stage}_{i}"
            x = relu(batch_norm(convolution(x, *blobs[name]), *blobs[f"{name}_bn"]))
        x, masks[stage] = max_pool(x)
    for stage, num_convolutions in reversed(FULL):
        x = upsample(x, masks[stage], sizes[stage])
        for i in range(num_convolutions, 0, -1):
            name = f"conv{stage}_{i}_D"
            x = convolution(x, *blobs[name])
            if name != "conv1_1_D":
                x = relu(batch_norm(x, *blobs[f"{name}_bn"]))
    return x


def segnet_basic(blobs, bgr, sizes):
    """Run `segnet_basic_inference.prototxt`; its decoder has no ReLU and its classifier is a 1x1 convolution."""
    x, masks = local_response(np.float64(bgr)), {}
    for stage in (1, 2, 3, 4):
        x = relu(batch_norm(convolution(x, *blobs[f"conv{stage}"]), *blobs[f"conv{stage}_bn"]))
        x, masks[stage] = max_pool(x)
    for stage in (4, 3, 2, 1):
        x = upsample(x, masks[stage], sizes[stage])
        x = batch_norm(convolution(x, *blobs[f"conv_decode{stage}"]), *blobs[f"conv_decode{stage}_bn"])
    (classifier,) = blobs.keys() & {"conv_classifier", "dense_softmax_inner_prod"}
    return convolution(x, *blobs[classifier])

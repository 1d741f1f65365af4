"""Check multiply-adds counted from programs by hand, for every form of a convolution, and against SegNet's formulas."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from segnet_jax.benchmarks.program_counts import flop, products_of
from segnet_jax.benchmarks.roofline import work_of
from segnet_jax.nn import SegNet, SegNetBasic

LAYOUT = ("NHWC", "HWIO", "NHWC")


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def convolve(x, kernel, strides=(1, 1), **form):
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=LAYOUT, **form)


def multiply_adds(function, *args):
    return flop(products_of(function, *args)) / 2


def test_a_convolution_by_hand_and_both_its_gradients():
    """Compare with 6 * 10 * 8 outputs, each a sum over 3 * 3 * 4 products; each gradient needs as many."""
    x, kernel = shaped(2, 6, 10, 4), shaped(3, 3, 4, 8)
    forward = 2 * 6 * 10 * 8 * 9 * 4
    assert multiply_adds(convolve, x, kernel) == forward
    loss = lambda x, kernel: jnp.sum(convolve(x, kernel) ** 2)  # noqa: E731
    assert multiply_adds(jax.grad(loss, (0, 1)), x, kernel) == 3 * forward
    assert multiply_adds(jax.grad(loss, 1), x, kernel) == 2 * forward


def test_grouped_and_strided_convolutions_by_hand():
    x = shaped(1, 8, 8, 6)
    assert multiply_adds(lambda x, k: convolve(x, k, feature_group_count=6), x, shaped(3, 3, 1, 6)) == 8 * 8 * 6 * 9
    assert multiply_adds(lambda x, k: convolve(x, k, feature_group_count=2), x, shaped(3, 3, 3, 4)) == 8 * 8 * 4 * 27
    assert multiply_adds(lambda x, k: convolve(x, k, (2, 2)), x, shaped(3, 3, 6, 4)) == 4 * 4 * 4 * 54
    by_channel = lambda x, k: jnp.sum(convolve(x, k, feature_group_count=6) ** 2)  # noqa: E731
    assert multiply_adds(jax.grad(by_channel, (0, 1)), x, shaped(3, 3, 1, 6)) == 3 * 8 * 8 * 6 * 9


def test_a_transposed_convolution_counts_no_zeros_between_rows():
    """Compare with 8 * 10 * 3 outputs, each a sum over the 6 channels of one input pixel."""
    up = lambda x, k: lax.conv_transpose(x, k, (2, 2), "VALID", dimension_numbers=LAYOUT)  # noqa: E731
    assert multiply_adds(up, shaped(1, 4, 5, 6), shaped(2, 2, 6, 3)) == 8 * 10 * 3 * 6


def test_loops_choices_and_matrices():
    matrix, row = shaped(5, 7), shaped(3, 5)
    assert multiply_adds(jnp.dot, row, matrix) == 3 * 5 * 7
    square = shaped(4, 4)
    assert multiply_adds(lambda m: lax.scan(lambda c, _: (c @ m, None), m, None, length=6)[0], square) == 6 * 4**3
    assert multiply_adds(lambda m: lax.cond(m[0, 0] > 0, lambda m: m @ m @ m, lambda m: m @ m, m), square) == 2 * 4**3
    by_platform = lambda m: lax.platform_dependent(m, cpu=lambda m: m @ m @ m, default=lambda m: m @ m)  # noqa: E731
    assert multiply_adds(by_platform, square) == 4**3
    assert multiply_adds(lambda m: (m @ m, m + 1)[1], square) == 0  # no result needs it
    with pytest.raises(ValueError, match="while loop"):
        products_of(lambda m: lax.while_loop(lambda m: m[0, 0] < 9, lambda m: m @ m, m), square)


def by_formula(model, height, width):
    """Return the forward multiply-adds of a SegNet's or SegNet-Basic's convolutions, and of the first, from sizes."""
    is_basic = isinstance(model, SegNetBasic)
    taps, layers, sizes, channels = (49 if is_basic else model.kernel_size**2), [], [], 3
    for outputs, count in model.stages:
        for _ in range(count):
            layers.append(height * width * channels * outputs * taps)
            channels = outputs
        sizes.append((height, width))
        height, width = (-(-n // 2) if model.pooling == "ceil" else max(n // 2, 1) for n in (height, width))
    for stage in reversed(range(len(sizes))):
        height, width = sizes[stage]
        count = model.stages[stage][1]
        last = channels if is_basic else model.stages[stage - 1][0] if stage else model.num_classes
        for i in range(count):
            outputs = last if i == count - 1 else channels
            inputs = 1 if is_basic and model.decoder == "single-channel" else channels
            layers.append(height * width * inputs * outputs * taps)
            channels = outputs
    if is_basic:
        layers.append(height * width * channels * model.num_classes)
    return sum(layers), layers[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        SegNet(11, width=0.25, depth=3),
        SegNet(11, pooling="ceil", dropout=0.5, depth=4, upsampling="bilinear", dtype=jnp.bfloat16),
        SegNet(5, stage_convolutions=(2, 1), stage_channels=(4, 6), kernel_size=5, conv_bias=True, dtype=jnp.float16),
        SegNet(5, encoder="vgg19", width=0.5, final_batch_norm=True, upsampling="learnt"),
        SegNetBasic(11, pooling="ceil"),
        SegNetBasic(11, decoder="single-channel", encoder_addition=True, depth=3),
    ],
    ids=range(6),
)
def test_the_count_is_that_of_the_formulas_forward_and_backward(model):
    forward, first = by_formula(model, 37, 50)
    work = work_of(model, 37, 50)
    assert work.infer_flop == 2 * forward
    assert work.train_flop == 2 * (3 * forward - first)  # the image needs no gradient


def test_frozen_stages_have_no_gradients():
    model = SegNet(5, stage_convolutions=(1, 1), stage_channels=(4, 6), frozen_stages=1)
    first, second = 16 * 16 * 9 * 3 * 4, 8 * 8 * 9 * 4 * 6
    up, head = 8 * 8 * 9 * 6 * 4, 16 * 16 * 9 * 4 * 5
    # The second is the first that is trained: its image needs no gradient.
    assert work_of(model, 16, 16).train_flop == 2 * (first + 2 * second + 3 * up + 3 * head)
